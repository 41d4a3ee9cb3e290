package aks_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"picket/services/auditlog-ingest/aks"
	"picket/services/auditlog-ingest/aks/akstest"
	"picket/services/auditlog-ingest/source"
)

const (
	auditContainer = "insights-logs-kube-audit"
	resource       = "/subscriptions/s/resourcegroups/g/providers/microsoft.containerservice/managedclusters/"
)

// storageConfig returns the configuration for one container, from its
// beginning.
func storageConfig(t testing.TB, a *akstest.Account, container string) aks.Config {
	cfg := aks.DefaultConfig()
	cfg.Start = source.StartBeginning
	cfg.PollEvery = time.Second
	cfg.Storage = []aks.StorageConfig{{Name: "logs", ConnectionStringFile: writeFile(t, "connection", a.ConnectionString()), Containers: []string{container}}}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// blobLines returns n records as lines of a blob.
func blobLines(res string, from, n int) []byte {
	var b bytes.Buffer
	for i := range n {
		b.Write(akstest.Azure(strings.ToUpper(res), "kube-audit", akstest.Audit(from+i)))
		b.WriteString("\n")
	}
	return b.Bytes()
}

// TestStorage runs all tests against one account, each with a container of its
// own: Azurite takes seconds to start.
func TestStorage(t *testing.T) {
	a := akstest.NewAccount(t)
	t.Run("side by side", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *akstest.Account){
			"forms": storageForms, "start": storageStart, "gone": storageGone, "hostile": storageHostile, "slow": storageSlow,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, a)
			})
		}
	})
	t.Run("faults", func(t *testing.T) { storageFaults(t, a) })
}

func storageForms(t *testing.T, a *akstest.Account) {
	hour := time.Now().UTC().Truncate(time.Hour)
	one, two := resource+"one", resource+"two"
	// Two clusters, a blob of three days ago, late records, and the forms.
	a.Append(auditContainer, akstest.BlobName(one, hour.Add(-72*time.Hour)), blobLines(one, 0, 10))
	a.Append(auditContainer, akstest.BlobName(one, hour.Add(-time.Hour)), blobLines(one, 10, 5))
	a.Append("insights-logs-kube-audit-admin", akstest.BlobName(two, hour), bytes.TrimSpace(blobLines(two, 100, 1))) // no end of line
	a.Append(auditContainer, "resourceId="+strings.ToUpper(one)+"/other", []byte("x"))
	cfg := storageConfig(t, a, auditContainer)
	cfg.Storage[0].Containers = nil // those of diagnostic settings
	cfg.Clusters = []aks.ClusterConfig{{ResourceID: one, Name: "c1"}, {ResourceID: two, Name: "c2"}}
	l := newLedger()
	stop := start(t, cfg, l)
	until(t, "what is there", func() bool { return l.distinct() == 16 })
	a.Append(auditContainer, akstest.BlobName(one, hour), blobLines(one, 20, 1)[:300]) // half a line
	a.Append("insights-logs-kube-audit-admin", akstest.BlobName(two, hour), append([]byte("\r\n"), akstest.Message(akstest.Azure(two, "kube-audit-admin", akstest.Audit(101)), akstest.Azure(two, "kube-audit-admin", akstest.Audit(102)))...))
	a.Append(auditContainer, akstest.BlobName(one, hour.Add(-time.Hour)), blobLines(one, 15, 2)) // late
	until(t, "what was appended", func() bool { return l.distinct() == 20 })
	a.Append(auditContainer, akstest.BlobName(one, hour), blobLines(one, 20, 1)[300:])
	until(t, "the rest of the line", func() bool { return l.distinct() == 21 })
	stop()
	start(t, cfg, l)
	a.Append(auditContainer, akstest.BlobName(one, hour), []byte("broken\n"))
	until(t, "what is no record", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.refused) == 1 })
	if l.taken != 21 || l.clusters["c1"] != 18 || l.clusters["c2"] != 3 || len(l.gaps) > 0 {
		t.Errorf("%d taken of %v, gaps %q", l.taken, l.clusters, l.gaps)
	}
}

func storageStart(t *testing.T, a *akstest.Account) {
	now := time.Now().UTC()
	res := resource + "c"
	a.Append("c-start", akstest.BlobName(res, now.Add(-50*time.Hour)), blobLines(res, 0, 1))
	a.Append("c-start", akstest.BlobName(res, now.Add(-30*time.Hour)), blobLines(res, 1, 1))
	a.Append("c-start", akstest.BlobName(res, now), blobLines(res, 2, 1))
	cfg := storageConfig(t, a, "c-start")
	cfg.Start = source.Start(now.Add(-40 * time.Hour).Format(time.RFC3339))
	l := newLedger()
	stop := start(t, cfg, l)
	until(t, "from a time", func() bool { return l.distinct() == 2 })
	stop()
	if l.seen[akstest.ID(0)] != 0 {
		t.Errorf("start at a time: %v", l.seen)
	}
	cfg.Start = source.StartNow
	l = newLedger()
	start(t, cfg, l)
	until(t, "the first checkpoint", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.marks) == 1 })
	a.Append("c-start", akstest.BlobName(res, now), blobLines(res, 3, 1))
	until(t, "what is new", func() bool { return l.distinct() == 1 })
	if l.seen[akstest.ID(3)] != 1 {
		t.Errorf("start now: %v", l.seen)
	}
}

// storageGone holds that blobs that are deleted before they are read are
// told as a gap with its times, and those that were read are not.
func storageGone(t *testing.T, a *akstest.Account) {
	now := time.Now().UTC()
	res := resource + "c"
	name := func(hours int) string { return akstest.BlobName(res, now.Add(-time.Duration(hours)*time.Hour)) }
	for i := range 3 {
		a.Append("c-gone", name(2-i), blobLines(res, i, 1))
	}
	cfg := storageConfig(t, a, "c-gone")
	l := newLedger()
	stop := start(t, cfg, l)
	until(t, "what is there", func() bool { return l.distinct() == 3 })
	stop()
	a.Delete("c-gone", name(2))
	a.Delete("c-gone", name(1))
	a.Append("c-gone", name(0), blobLines(res, 3, 1))
	start(t, cfg, l)
	until(t, "the rest", func() bool { return l.distinct() == 4 })
	if len(l.gaps) != 1 || !strings.Contains(l.gaps[0], "from") || l.taken != 4 {
		t.Errorf("%d taken, gaps %q", l.taken, l.gaps)
	}
}

// storageHostile holds that long lines are bounded and refused, and what
// stands beside them is taken.
func storageHostile(t *testing.T, a *akstest.Account) {
	now := time.Now().UTC()
	res := resource + "c"
	long := bytes.Repeat([]byte("x"), 3<<20)
	a.Append("c-hostile", akstest.BlobName(res, now), blobLines(res, 0, 1))
	for range 7 { // 21 MB in one line
		a.Append("c-hostile", akstest.BlobName(res, now), long)
	}
	a.Append("c-hostile", akstest.BlobName(res, now), append([]byte("\n\n\r\n"), blobLines(res, 1, 2)...))
	l := newLedger()
	start(t, storageConfig(t, a, "c-hostile"), l)
	until(t, "what stands behind", func() bool { return l.distinct() == 3 })
	if want := fmt.Sprintf("%d bytes: a line of", 21<<20); len(l.refused) != 1 || !strings.Contains(l.refused[0], want) {
		t.Errorf("refused %.300q, want %q", l.refused, want)
	}
}

// storageSlow holds that a cluster whose requests hang does not delay
// another.
func storageSlow(t *testing.T, a *akstest.Account) {
	now := time.Now().UTC()
	slow, fast := resource+"slow", resource+"fast"
	a.Append("c-slow", akstest.BlobName(slow, now), blobLines(slow, 0, 1))
	a.Append("c-slow", akstest.BlobName(fast, now), blobLines(fast, 1, 1))
	a.Hold("SLOW%2Fy%3D") // the blobs, not the cluster
	l := newLedger()
	start(t, storageConfig(t, a, "c-slow"), l)
	until(t, "the fast one", func() bool { return l.distinct() == 1 })
	a.Append("c-slow", akstest.BlobName(fast, now), blobLines(fast, 2, 1))
	until(t, "the fast one again", func() bool { return l.distinct() == 2 })
	a.Hold("")
	until(t, "the slow one", func() bool { return l.distinct() == 3 })
}

// storageFaults appends 100,000 records to the blobs of 2 clusters and 6
// hours, late ones too, with faults on, while the ingester crashes again and
// again.
func storageFaults(t *testing.T, a *akstest.Account) {
	const events, seed = 100_000, 7
	rnd := rand.New(rand.NewPCG(seed, 0))
	now := time.Now().UTC()
	cfg := storageConfig(t, a, "c-faults")
	cfg.Late = 12 * time.Hour
	done := make(chan struct{})
	appendSome := func(i int) int {
		res := resource + fmt.Sprint("c", rnd.IntN(2))
		n := min(1+rnd.IntN(1500), events-i)
		text := blobLines(res, i, n)
		name := akstest.BlobName(res, now.Add(-time.Duration(rnd.IntN(6))*time.Hour))
		if cut := rnd.IntN(len(text)); cut > 0 { // in two appends
			a.Append("c-faults", name, text[:cut])
			text = text[cut:]
		}
		a.Append("c-faults", name, text)
		return i + n
	}
	first := appendSome(0)
	a.SetFaults(akstest.AccountFaults{Busy: 0.05, Deny: 0.02, Cut: 0.05, Delay: 5 * time.Millisecond}, seed)
	go func() {
		defer close(done)
		for i := first; i < events; {
			i = appendSome(i)
		}
	}()
	l := newLedger()
	crashes := rand.New(rand.NewPCG(seed, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	began, lives := time.Now(), 0
	for l.distinct() < events && ctx.Err() == nil {
		lives++
		one, stop := context.WithCancel(ctx)
		go func() {
			for l.distinct() < events && one.Err() == nil {
				time.Sleep(20 * time.Millisecond)
			}
			stop()
		}()
		life(one, t, cfg, l, func(string) int { return 5000 + crashes.IntN(25_000) })
		stop()
	}
	<-done
	s := a.Stats()
	t.Logf("%d records in %.1f s, %d lives, %d came again after a crash or a failed piece; faults: %+v", l.distinct(), time.Since(began).Seconds(), lives, l.taken-l.distinct(), s)
	if l.distinct() != events || len(l.gaps)+len(l.refused) != 0 {
		t.Fatalf("%d of %d records, gaps %q, refused %.1000q", l.distinct(), events, l.gaps, l.refused)
	}
	if lives < 3 || s.Busy == 0 || s.Denied == 0 || s.Cut == 0 {
		t.Errorf("a fault did not happen: %d lives, %+v", lives, s)
	}
	// A crash repeats at most the piece it was in: 1 MiB, of lines of 1 KB.
	if again := l.taken - l.distinct(); again > lives*2*1100 {
		t.Errorf("%d records came again, more than the crashes explain", again)
	}
}
