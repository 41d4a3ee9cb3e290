package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"picket/internal/bus"
	"picket/internal/fault"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func publish(t *testing.T, b *bus.Bus, subject string, data string) {
	t.Helper()
	if _, err := b.JS.Publish(context.Background(), subject, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

// consume runs Consume until n messages are settled, and returns what handle
// was given.
func consume(t *testing.T, b *bus.Bus, n int, handle func(*bus.Message) error) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var mu sync.Mutex
	var seen []string
	err := b.Consume(ctx, schemas.StreamRaw, schemas.DurableEnricher, time.Second, func(m *bus.Message) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, string(m.Data()))
		m.Done(handle(m))
		if len(seen) == n {
			cancel()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) < n {
		t.Fatalf("%d of %d messages", len(seen), n)
	}
	return seen
}

func messages(t *testing.T, b *bus.Bus, stream string) uint64 {
	t.Helper()
	s, err := b.JS.Stream(context.Background(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// unsettled returns how many messages stay on a work queue: the server takes
// an acknowledgement in its own time.
func unsettled(t *testing.T, b *bus.Bus, stream string) uint64 {
	t.Helper()
	left := messages(t, b, stream)
	for end := time.Now().Add(10 * time.Second); left != 0 && time.Now().Before(end); left = messages(t, b, stream) {
		time.Sleep(10 * time.Millisecond)
	}
	return left
}

func TestConsumeSettlesByTheError(t *testing.T) {
	s := natstest.Start(t)
	admin := natstest.Connect(t, s, schemas.ServiceAdmin)
	enricher := natstest.Connect(t, s, schemas.ServiceEnricher)
	subject := schemas.RawSubject("c", "n", schemas.Process)
	long := strings.Repeat("x", 100<<10)
	for _, d := range []string{"good", "bad" + long, "flaky", "last"} {
		publish(t, admin, subject, d)
	}
	tries := 0
	seen := consume(t, enricher, 5, func(m *bus.Message) error {
		switch {
		case bytes.HasPrefix(m.Data(), []byte("bad")):
			return fault.Permanent("decode", fmt.Errorf("no such thing\nat all"))
		case string(m.Data()) == "flaky":
			if tries++; tries == 1 {
				return errors.New("not today")
			}
			if m.Deliveries != 2 {
				t.Errorf("delivery %d", m.Deliveries)
			}
		}
		return nil
	})
	if !slices.Contains(seen[4:], "flaky") {
		t.Errorf("order %q", seen)
	}
	if left := unsettled(t, admin, schemas.StreamRaw); left != 0 {
		t.Errorf("%d messages left on the work queue", left)
	}
	dead, err := admin.JS.Stream(context.Background(), schemas.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	m, err := dead.GetMsg(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "picket.dead.enricher" || len(m.Data) != schemas.MaxDeadBytes {
		t.Errorf("dead letter on %s of %d bytes", m.Subject, len(m.Data))
	}
	for h, want := range map[string]string{schemas.HeaderReason: "decode: no such thing at all", schemas.HeaderStream: schemas.StreamRaw,
		schemas.HeaderSequence: "2", schemas.HeaderLength: fmt.Sprint(3 + len(long)), schemas.HeaderSubject: subject} {
		if got := m.Header.Get(h); got != want {
			t.Errorf("%s: %q, want %q", h, got, want)
		}
	}
}

// A message that is worked on longer than AckWait must not be given to
// another consumer while its process lives.
func TestLongWorkIsNotRedelivered(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED (-short): takes longer than AckWait")
	}
	s := natstest.Start(t)
	admin := natstest.Connect(t, s, schemas.ServiceAdmin)
	enricher := natstest.Connect(t, s, schemas.ServiceEnricher)
	publish(t, admin, schemas.RawSubject("c", "n", schemas.Process), "slow")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	deliveries := 0
	err := enricher.Consume(ctx, schemas.StreamRaw, schemas.DurableEnricher, time.Second, func(m *bus.Message) {
		deliveries++
		time.AfterFunc(bus.AckWait+3*time.Second, func() { m.Done(nil); cancel() })
	})
	if err != nil {
		t.Fatal(err)
	}
	if left := unsettled(t, admin, schemas.StreamRaw); deliveries != 1 || left != 0 {
		t.Errorf("delivered %d times, %d messages left", deliveries, left)
	}
}

func TestMigrateIsRepeatableAndVerifyNamesWhatIsMissing(t *testing.T) {
	s, err := natsserver.Start(natsserver.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	admin, err := bus.Connect(natstest.Config(s, schemas.ServiceAdmin), schemas.ServiceAdmin, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx := context.Background()
	err = admin.Verify(ctx, 0, schemas.StreamRaw, schemas.StreamEvents)
	if err == nil || !strings.Contains(err.Error(), schemas.StreamRaw) || !strings.Contains(err.Error(), "picket migrate") {
		t.Errorf("missing streams: %v", err)
	}
	for range 2 {
		if err := admin.Migrate(ctx, bus.DefaultLimits()); err != nil {
			t.Fatal(err)
		}
	}
	if err := admin.Verify(ctx, 0, schemas.StreamRaw, schemas.StreamEvents, schemas.StreamAlerts, schemas.StreamDead); err != nil {
		t.Error(err)
	}
}

// Each service's credentials allow its own work and nothing else.
func TestCredentials(t *testing.T) {
	s, err := natsserver.Start(natsserver.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Cluster: "prod", Node: "node.1"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	connect := func(service string) *bus.Bus {
		b, err := bus.Connect(natstest.Config(s, service), service, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		return b
	}
	if err := connect(schemas.ServiceAdmin).Migrate(context.Background(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		service, subject string
		allowed          bool
	}{
		{schemas.ServiceSensor, schemas.RawSubject("prod", "node.1", schemas.Process), true},
		{schemas.ServiceSensor, schemas.RawSubject("prod", "node-2", schemas.Process), false},
		{schemas.ServiceSensor, schemas.RawSubject("other", "node.1", schemas.Process), false},
		{schemas.ServiceSensor, schemas.EventsSubject("prod", "node.1", schemas.Process), false},
		{schemas.ServiceSensor, schemas.AlertSubject("prod", schemas.High, "ns", "r"), false},
		{schemas.ServiceAudit, schemas.RawSubject("prod", "webhook", schemas.Audit), true},
		{schemas.ServiceAudit, schemas.RawSubject("prod", "webhook", schemas.Process), false},
		{schemas.ServiceEnricher, schemas.EventsSubject("prod", "node.1", schemas.Process), true},
		{schemas.ServiceEnricher, schemas.RawSubject("prod", "node.1", schemas.Process), false},
		{schemas.ServiceEnricher, schemas.RawSubject("prod", "_enricher", schemas.Health), true},
		{schemas.ServiceDetector, schemas.AlertSubject("prod", schemas.High, "ns", "r"), true},
		{schemas.ServiceDetector, schemas.EventsSubject("prod", "node.1", schemas.Process), false},
		{schemas.ServiceSink, schemas.AlertSubject("prod", schemas.High, "ns", "r"), false},
		{schemas.ServiceReader, schemas.AlertSubject("prod", schemas.High, "ns", "r"), false},
		{schemas.ServiceSensor, schemas.DeadSubject(schemas.ServiceSensor), true},
		{schemas.ServiceSensor, schemas.DeadSubject(schemas.ServiceSink), false},
	}
	buses := map[string]*bus.Bus{}
	for _, tt := range tests {
		b := buses[tt.service]
		if b == nil {
			b = connect(tt.service)
			buses[tt.service] = b
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		if !tt.allowed {
			ctx, cancel = context.WithTimeout(context.Background(), 150*time.Millisecond)
		}
		_, err := b.JS.Publish(ctx, tt.subject, []byte("x"))
		cancel()
		if (err == nil) != tt.allowed {
			t.Errorf("%s publishing to %s: %v, allowed should be %v", tt.service, tt.subject, err, tt.allowed)
		}
	}
	// Nobody may listen to another's replies.
	sub, err := buses[schemas.ServiceSensor].NC.SubscribeSync(bus.InboxPrefix(schemas.ServiceDetector) + ".>")
	if err != nil {
		t.Fatal(err)
	}
	if err := buses[schemas.ServiceSensor].NC.Flush(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if sub.IsValid() && buses[schemas.ServiceSensor].NC.LastError() == nil {
		t.Error("the sensor may subscribe to the detector's inbox")
	}
}

func TestConnectErrors(t *testing.T) {
	s := natstest.Start(t)
	log := slog.New(slog.DiscardHandler)
	if _, err := bus.Connect(bus.Config{URL: s.URL()}, "sensor", log); err == nil || !strings.Contains(err.Error(), "refused the credentials") {
		t.Errorf("without credentials: %v", err)
	}
	if err := (bus.Config{URL: s.URL(), CredentialsFile: "/does/not/exist"}).Validate(); err == nil || !strings.Contains(err.Error(), "nats.credentials_file") {
		t.Errorf("missing credentials file: %v", err)
	}
	// Nobody there: connected as soon as somebody is.
	b, err := bus.Connect(bus.Config{URL: "nats://127.0.0.1:1"}, "sensor", log)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Ready(); err == nil {
		t.Error("ready without a server")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := b.Verify(ctx, time.Second, schemas.StreamRaw); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("verify waits for a server: %v", err)
	}
}
