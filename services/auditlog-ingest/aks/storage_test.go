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

func storageConfig(t testing.TB, a *akstest.Account) aks.Config {
	cfg := aks.DefaultConfig()
	cfg.Start = source.StartBeginning
	cfg.PollEvery = time.Second
	cfg.Storage = []aks.StorageConfig{{Name: "logs", ConnectionStringFile: writeFile(t, "connection", a.ConnectionString())}}
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

func TestStorage(t *testing.T) {
	a := akstest.NewAccount(t)
	hour := time.Now().UTC().Truncate(time.Hour)
	one, two := resource+"one", resource+"two"
	// Two clusters, a blob of three days ago, late records, and the forms.
	a.Append(auditContainer, akstest.BlobName(one, hour.Add(-72*time.Hour)), blobLines(one, 0, 10))
	a.Append(auditContainer, akstest.BlobName(one, hour.Add(-time.Hour)), blobLines(one, 10, 5))
	a.Append("insights-logs-kube-audit-admin", akstest.BlobName(two, hour), bytes.TrimSpace(blobLines(two, 100, 1))) // no end of line
	a.Append(auditContainer, "resourceId="+strings.ToUpper(one)+"/other", []byte("x"))
	cfg := storageConfig(t, a)
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

func TestStorageStart(t *testing.T) {
	t.Parallel()
	a := akstest.NewAccount(t)
	now := time.Now().UTC()
	res := resource + "c"
	a.Append(auditContainer, akstest.BlobName(res, now.Add(-50*time.Hour)), blobLines(res, 0, 1))
	a.Append(auditContainer, akstest.BlobName(res, now.Add(-30*time.Hour)), blobLines(res, 1, 1))
	a.Append(auditContainer, akstest.BlobName(res, now), blobLines(res, 2, 1))
	cfg := storageConfig(t, a)
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
	a.Append(auditContainer, akstest.BlobName(res, now), blobLines(res, 3, 1))
	until(t, "what is new", func() bool { return l.distinct() == 1 })
	if l.seen[akstest.ID(3)] != 1 {
		t.Errorf("start now: %v", l.seen)
	}
}

// TestStorageGone holds that blobs that are deleted before they are read are
// told as a gap with its times, and those that were read are not.
func TestStorageGone(t *testing.T) {
	t.Parallel()
	a := akstest.NewAccount(t)
	now := time.Now().UTC()
	res := resource + "c"
	name := func(hours int) string { return akstest.BlobName(res, now.Add(-time.Duration(hours)*time.Hour)) }
	for i := range 3 {
		a.Append(auditContainer, name(2-i), blobLines(res, i, 1))
	}
	cfg := storageConfig(t, a)
	l := newLedger()
	stop := start(t, cfg, l)
	until(t, "what is there", func() bool { return l.distinct() == 3 })
	stop()
	a.Delete(auditContainer, name(2))
	a.Delete(auditContainer, name(1))
	a.Append(auditContainer, name(0), blobLines(res, 3, 1))
	start(t, cfg, l)
	until(t, "the rest", func() bool { return l.distinct() == 4 })
	if len(l.gaps) != 1 || !strings.Contains(l.gaps[0], "from") || l.taken != 4 {
		t.Errorf("%d taken, gaps %q", l.taken, l.gaps)
	}
}

// TestStorageHostile holds that long lines are bounded and refused, and what
// stands beside them is taken.
func TestStorageHostile(t *testing.T) {
	t.Parallel()
	a := akstest.NewAccount(t)
	now := time.Now().UTC()
	res := resource + "c"
	long := bytes.Repeat([]byte("x"), 3<<20)
	a.Append(auditContainer, akstest.BlobName(res, now), blobLines(res, 0, 1))
	for range 7 { // 21 MB in one line
		a.Append(auditContainer, akstest.BlobName(res, now), long)
	}
	a.Append(auditContainer, akstest.BlobName(res, now), append([]byte("\n\n\r\n"), blobLines(res, 1, 2)...))
	l := newLedger()
	start(t, storageConfig(t, a), l)
	until(t, "what stands behind", func() bool { return l.distinct() == 3 })
	if want := fmt.Sprintf("%d bytes: a line of", 21<<20); len(l.refused) != 1 || !strings.Contains(l.refused[0], want) {
		t.Errorf("refused %.300q, want %q", l.refused, want)
	}
}

// TestStorageSlow holds that a cluster whose requests hang does not delay
// another.
func TestStorageSlow(t *testing.T) {
	t.Parallel()
	a := akstest.NewAccount(t)
	now := time.Now().UTC()
	slow, fast := resource+"slow", resource+"fast"
	a.Append(auditContainer, akstest.BlobName(slow, now), blobLines(slow, 0, 1))
	a.Append(auditContainer, akstest.BlobName(fast, now), blobLines(fast, 1, 1))
	a.Hold("SLOW")
	l := newLedger()
	start(t, storageConfig(t, a), l)
	until(t, "the fast one", func() bool { return l.distinct() == 1 })
	a.Append(auditContainer, akstest.BlobName(fast, now), blobLines(fast, 2, 1))
	until(t, "the fast one again", func() bool { return l.distinct() == 2 })
	a.Hold("")
	until(t, "the slow one", func() bool { return l.distinct() == 3 })
}

// TestStorageFaults appends 100,000 records to the blobs of 2 clusters and 6
// hours, late ones too, with faults on, while the ingester crashes again and
// again.
func TestStorageFaults(t *testing.T) {
	const events, seed = 100_000, 7
	a := akstest.NewAccount(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	now := time.Now().UTC()
	cfg := storageConfig(t, a)
	cfg.Late = 12 * time.Hour
	done := make(chan struct{})
	appendSome := func(i int) int {
		res := resource + fmt.Sprint("c", rnd.IntN(2))
		n := min(1+rnd.IntN(400), events-i)
		text := blobLines(res, i, n)
		name := akstest.BlobName(res, now.Add(-time.Duration(rnd.IntN(6))*time.Hour))
		if cut := rnd.IntN(len(text)); cut > 0 { // in two appends
			a.Append(auditContainer, name, text[:cut])
			text = text[cut:]
		}
		a.Append(auditContainer, name, text)
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
		life(one, t, cfg, l, func(string) int { return 500 + crashes.IntN(15_000) })
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
