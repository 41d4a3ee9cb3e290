// Command bench-enricher measures what a cluster costs the enricher: memory for
// its metadata, and processor time for an event. It generates a cluster, shows
// it through an API server of its own (internal/kubetest) to the informers of a
// real picket-enricher, a process of its own beside a real NATS server, and
// gives that raw batches of all nodes. Events a second per core are events by
// the processor time of the whole process, user and system: fetching, decoding,
// joining, encoding and publishing, and collecting garbage.
//
//	go run ./test/bench-enricher -check
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/kubetest"
	"picket/schemas"
	"picket/test/rig"
)

// The bars that -check holds the default size to.
const (
	mostMemory = 200 << 20 // bytes resident
	leastRate  = 200_000   // events a second per core
	checkRows  = 1000      // in batches of so many events: what a core's share of busy nodes sends in 50 ms
)

// loads are the sizes of batches, and the events given in each.
var loads = []struct{ rows, events int }{{10, 100_000}, {100, 1_000_000}, {checkRows, 1_000_000}}

func main() {
	rig.ServeNATS()
	check := flag.Bool("check", false, fmt.Sprintf("fail above %d MiB, or below %d events a second per core in batches of %d", mostMemory>>20, leastRate, checkRows))
	rounds := flag.Int("rounds", 3, "how often each load is measured; the medians are printed")
	s := size{}
	flag.IntVar(&s.pods, "pods", 10_000, "pods of the cluster")
	flag.IntVar(&s.nodes, "nodes", 1_000, "nodes of the cluster")
	flag.IntVar(&s.services, "services", 5_000, "services of the cluster, each with an EndpointSlice of ten pods")
	limit := flag.String("memlimit", "150MiB", "GOMEMLIMIT of the enricher, as its container sets it; empty: none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if s.pods < podsPerWorkload || s.nodes < 1 || *rounds < 1 {
		fmt.Fprintf(os.Stderr, "bench-enricher: -pods is at least %d, -nodes and -rounds at least 1\n", podsPerWorkload)
		os.Exit(2)
	}
	if err := run(ctx, s, *rounds, *limit, *check); err != nil {
		fmt.Fprintln(os.Stderr, "bench-enricher:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s size, rounds int, limit string, check bool) (err error) {
	dir, err := os.MkdirTemp("", "picket-bench-enricher-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary, err := rig.Build(ctx, dir, "picket-enricher")
	if err != nil {
		return err
	}
	objects := generate(s)
	count := len(objects)
	api, err := kubetest.New(objects...)
	if err != nil {
		return err
	}
	defer api.Down()
	kubeconfig, err := api.Kubeconfig(dir)
	if err != nil {
		return err
	}
	server, err := rig.StartNATS(ctx, dir+"/nats", 2<<30)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := os.Setenv("GOMEMLIMIT", limit); err != nil { // for what is started from here on
		return err
	}
	began := time.Now()
	p, err := rig.StartEnricher(ctx, binary, dir, server, "--kubernetes.enabled=true", "--kubernetes.kubeconfig", kubeconfig, "--kubernetes.context", "right", "--kubernetes.sync_timeout", "2m")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	ready := time.Since(began)
	if err := p.Until(ctx, 2*time.Minute, 100*time.Millisecond, "done with writing its metadata", func() (bool, error) {
		kv, err := server.Admin.JS.KeyValue(ctx, schemas.BucketMetadata)
		if err != nil {
			return false, err
		}
		_, err = kv.Get(ctx, schemas.MetadataKey(rig.Cluster, "complete"))
		return err == nil, err
	}); err != nil {
		return err
	}
	written := time.Since(began)
	_, idle, err := p.Memory()
	if err != nil {
		return err
	}
	fmt.Printf("%d pods, %d nodes, %d services; %d objects in all. %d CPUs, medians of %d rounds, GOMEMLIMIT=%s.\n", s.pods, s.nodes, s.services, count, runtime.NumCPU(), rounds, limit)
	fmt.Printf("ready after %.1f s, metadata in NATS after %.1f s\n\n", ready.Seconds(), written.Seconds())

	fmt.Printf("%14s %14s %14s %14s\n", "events a batch", "events/s/core", "ns/event", "events/s")
	type measured struct {
		rows        int
		perCore, ns []float64
	}
	var results []measured
	for _, l := range loads {
		m := measured{rows: l.rows}
		messages, err := encode(l.rows, s)
		if err != nil {
			return err
		}
		var rate []float64
		for range rounds {
			cpu, wall, err := give(ctx, server.Admin, p, messages, l.events/l.rows)
			if err != nil {
				return err
			}
			m.perCore, m.ns = append(m.perCore, float64(l.events)/cpu.Seconds()), append(m.ns, float64(cpu.Nanoseconds())/float64(l.events))
			rate = append(rate, float64(l.events)/wall.Seconds())
		}
		fmt.Printf("%14d %14.0f %14.0f %14.0f\n", l.rows, median(m.perCore), median(m.ns), median(rate))
		results = append(results, m)
	}
	peak, now, err := p.Memory()
	if err != nil {
		return err
	}
	fmt.Printf("\nresident memory, MiB: %.0f when all was known, %.0f after the events, %.0f at the most\n", idle/(1<<20), now/(1<<20), peak/(1<<20))
	fmt.Printf("\ngoos: %s\ngoarch: %s\npkg: picket/test/bench-enricher\n", runtime.GOOS, runtime.GOARCH)
	for _, m := range results {
		for i := range m.ns {
			fmt.Printf("BenchmarkEnricher/rows=%d 1 %.1f ns/op %.0f events/s/core\n", m.rows, m.ns[i], m.perCore[i])
		}
	}
	fmt.Printf("BenchmarkEnricherMemory 1 %.0f idle-bytes %.0f loaded-bytes %.0f peak-bytes\n", idle, now, peak)
	var missed []error
	if max(idle, now) > mostMemory {
		missed = append(missed, fmt.Errorf("%.0f MiB resident, more than %d", max(idle, now)/(1<<20), mostMemory>>20))
	}
	for _, m := range results {
		if m.rows == checkRows && median(m.perCore) < leastRate {
			missed = append(missed, fmt.Errorf("%.0f events a second per core, less than %d", median(m.perCore), leastRate))
		}
	}
	if check {
		return errors.Join(missed...)
	}
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// message is a raw batch with its subject.
type message struct {
	subject string
	data    []byte
	rows    int
}

// encode makes batches of rows events as busy nodes send them: of the pods of
// one node, in bursts, three of five of processes, one of files, one of
// connections to other pods.
func encode(rows int, s size) ([]message, error) {
	classes := []schemas.Class{schemas.Process, schemas.Process, schemas.Process, schemas.File, schemas.Network}
	var out []message
	for n := range min(s.nodes, 500) {
		c := classes[n%len(classes)]
		b := batch.NewBuilder(c, schemas.RawColumns(c))
		now := time.Now().UnixNano()
		local := max(1, s.pods/s.nodes)
		for r := range rows {
			p := n + r/4%local*s.nodes
			b.Bytes16(schemas.EventID, schemas.Hash128(strconv.Itoa(n), strconv.Itoa(r)))
			b.Str(schemas.Action, "exec")
			b.Str(schemas.Syscall, "execve")
			b.Str(schemas.Cluster, rig.Cluster)
			b.Str(schemas.Node, nodeName(n))
			b.Int64(schemas.EventTime, now+int64(r)*1000)
			b.Int64(schemas.TimeObserved, now+int64(r)*1000+500)
			b.Uint64(schemas.TimeBoot, uint64(r)*1000)
			b.Uint64(schemas.Sequence, uint64(r))
			b.Uint32(schemas.ProcessPID, uint32(4000+r))
			b.Uint32(schemas.ProcessParentPID, uint32(3000+p))
			b.Int64(schemas.ProcessStart, now)
			b.Str(schemas.ProcessName, "sh")
			b.Str(schemas.ProcessExe, "/bin/sh")
			b.Str(schemas.ProcessCommand, "sh")
			b.Str(schemas.ProcessArgs, "-c sleep "+strconv.Itoa(r%50))
			b.Str(schemas.ProcessCwd, "/")
			b.Str(schemas.ParentName, "containerd-shim")
			b.List(schemas.AncestorNames, []string{"containerd-shim", "systemd"})
			b.Uint64(schemas.CgroupID, uint64(10000+p))
			b.Str(schemas.PodUID, podUID(p))
			b.Str(schemas.ContainerID, containerID(3*p+r%2))
			b.Str(schemas.FilePath, "/var/lib/app/"+strconv.Itoa(r%100))
			b.Str(schemas.NetTransport, "tcp")
			b.Bytes16(schemas.NetPeerAddress, batch.IPv4(podAddress((p*7+r)%s.pods)))
			b.Uint32(schemas.NetPeerPort, 8080)
			b.EndRow()
		}
		enc, err := batch.Encode(b.Batch())
		if err != nil {
			return nil, err
		}
		for _, e := range enc {
			out = append(out, message{schemas.RawSubject(rig.Cluster, nodeName(n), c), e.Data, e.Batch.Rows()})
		}
	}
	return out, nil
}

// give publishes n batches and returns what processor time the enricher and
// what time on the wall it took until all were settled.
func give(ctx context.Context, admin *bus.Bus, p *rig.Process, messages []message, n int) (cpu, wall time.Duration, err error) {
	run := bus.NewRunID()
	before, err := p.CPU()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	for i := range n {
		m := messages[i%len(messages)]
		msg := nats.NewMsg(m.subject)
		id := schemas.BatchIDOf(run, uint64(i+1))
		msg.Data = m.data
		msg.Header.Set(schemas.HeaderBatchID, id)
		msg.Header.Set(schemas.HeaderRows, strconv.Itoa(m.rows))
		if _, err := admin.JS.PublishMsgAsync(msg, jetstream.WithMsgID(id)); err != nil {
			return 0, 0, err
		}
		if i%512 == 511 || i == n-1 {
			select {
			case <-admin.JS.PublishAsyncComplete():
			case <-ctx.Done():
				return 0, 0, ctx.Err()
			}
		}
	}
	err = p.Until(ctx, 5*time.Minute, 50*time.Millisecond, "done with all batches", func() (bool, error) {
		st, err := admin.JS.Stream(ctx, schemas.StreamRaw)
		if err != nil {
			return false, err
		}
		// Reports of its own health may be there.
		return st.CachedInfo().State.Msgs < 5, nil
	})
	if err != nil {
		return 0, 0, err
	}
	after, err := p.CPU()
	return after - before, time.Since(began), err
}
