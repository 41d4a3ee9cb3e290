package akstest

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

//go:embed eventhub.js
var eventHubJS []byte

// Names of the event hub and of the key that opens it.
const (
	HubName = "audit"
	KeyName = "listen"
)

// EventHub is an event hub that speaks AMQP 1.0: a process of node with the
// npm package rhea. It checks signatures and tokens, knows consumer groups
// ($Default, picket), selector filters and epochs, and does on demand what the
// cloud does now and then. Its methods may be called at any time by anyone.
type EventHub struct {
	// Addr is the host and port that it listens on.
	Addr string

	t   testing.TB
	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Reader
}

// Faults are chances from 0 to 1, of each event sent if nothing else is said.
type Faults struct {
	Detach float64 `json:"detach"`   // the link is detached
	Cut    float64 `json:"cut"`      // the connection is reset, with all its links
	Expire float64 `json:"expire"`   // the token has expired
	Repeat float64 `json:"repeat"`   // up to 20 events are sent again
	Busy   float64 `json:"busy"`     // of each link and each request: server-busy
	Mute   float64 `json:"mute"`     // of each request: it is never answered
	Delay  float64 `json:"delay_ms"` // how long a pause may be, in milliseconds
}

// Stats counts what happened.
type Stats struct {
	Links, Connections                                                                  int // open now
	Attaches, Sent, Repeats, Detaches, Cuts, Busy, Expired, Stolen, Refused, Held, Puts int
}

// NewEventHub starts an event hub with the given partitions, without TLS if
// certFile is empty, until the test ends. It skips the test where node or its
// packages are missing.
func NewEventHub(t testing.TB, partitions int, certFile, keyFile string) *EventHub {
	t.Helper()
	modules := npm(t)
	script := filepath.Join(t.TempDir(), "eventhub.js")
	if err := os.WriteFile(script, eventHubJS, 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{script}
	if certFile != "" {
		args = append(args, certFile, keyFile)
	}
	cmd := exec.Command("node", args...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the event hub: %v", err)
	}
	h := &EventHub{t: t, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		in.Close() // that ends it
		if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("the event hub ended with %v\n%s", err, stderr.Bytes())
		}
	})
	var hello struct{ Port int }
	if err := h.read(&hello); err != nil {
		t.Fatalf("the event hub does not start: %v\n%s", err, stderr.Bytes())
	}
	h.Addr = fmt.Sprintf("127.0.0.1:%d", hello.Port)
	h.Create(partitions, "secret-1")
	return h
}

func (h *EventHub) read(v any) error {
	line, err := h.out.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// do sends a command and reads its answer.
func (h *EventHub) do(op string, args map[string]any, answer any) {
	h.t.Helper()
	if args == nil {
		args = map[string]any{}
	}
	args["op"] = op
	data, err := json.Marshal(args)
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err = h.in.Write(append(data, '\n')); err == nil {
		err = h.read(answer)
	}
	if err != nil {
		h.t.Fatalf("event hub: %s: %v", op, err)
	}
}

// ConnectionString returns a connection string with a key.
func (h *EventHub) ConnectionString(key string) string {
	return fmt.Sprintf("Endpoint=sb://%s;SharedAccessKeyName=%s;SharedAccessKey=%s;EntityPath=%s;UseDevelopmentEmulator=true", h.Addr, KeyName, key, HubName)
}

// Create makes the hub anew, empty, as when it was deleted and created.
func (h *EventHub) Create(partitions int, key string) {
	h.do("create", map[string]any{"partitions": partitions, "created": time.Now().UnixMilli(), "keys": map[string]string{KeyName: key}}, &struct{}{})
}

// SetKey makes the key the only one that opens the hub; links stay open.
func (h *EventHub) SetKey(key string) {
	h.do("keys", map[string]any{"keys": map[string]string{KeyName: key}}, &struct{}{})
}

// SetTokens makes the tokens (of Entra ID) valid until their times.
func (h *EventHub) SetTokens(tokens map[string]time.Time) {
	until := map[string]int64{}
	for k, at := range tokens {
		until[k] = at.Unix()
	}
	h.do("tokens", map[string]any{"tokens": until}, &struct{}{})
}

// Add appends events, enqueued at the given time, to a partition.
func (h *EventHub) Add(partition int, at time.Time, bodies ...[]byte) {
	h.do("add", map[string]any{"partition": partition, "time": at.UnixMilli(), "bodies": bodies}, &struct{}{})
}

// Forget deletes a partition's events before the given sequence number, as
// retention does.
func (h *EventHub) Forget(partition int, begin int64) {
	h.do("forget", map[string]any{"partition": partition, "begin": begin}, &struct{}{})
}

// Hold makes a partition give nothing out, or go on.
func (h *EventHub) Hold(partition int, hold bool) {
	h.do("hold", map[string]any{"partition": partition, "hold": hold}, &struct{}{})
}

// SetFaults sets the rates of faults; seed makes them come in the same order.
func (h *EventHub) SetFaults(f Faults, seed int) {
	h.do("faults", map[string]any{"faults": f, "seed": seed}, &struct{}{})
}

// Cut resets all connections.
func (h *EventHub) Cut() { h.do("cut", nil, &struct{}{}) }

// Expire makes all tokens in use expire, and detaches their links.
func (h *EventHub) Expire() { h.do("expire", nil, &struct{}{}) }

// Stats returns what happened.
func (h *EventHub) Stats() (s Stats) {
	h.do("stats", nil, &s)
	return s
}
