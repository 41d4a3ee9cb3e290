package enricher

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/schemas"
)

// typical fills a batch of rows events as a busy node of 30 pods sends them.
func typical(c schemas.Class, rows, pods int) *batch.Batch {
	b := batch.NewBuilder(c, schemas.RawColumns(c))
	now := time.Now().UnixNano()
	for r := range rows {
		p := r / 4 % pods // a pod's events come in bursts
		b.Bytes16(schemas.EventID, schemas.Hash128(strconv.Itoa(r)))
		b.Str(schemas.Action, "exec")
		b.Str(schemas.Syscall, "execve")
		b.Str(schemas.Cluster, "test")
		b.Str(schemas.Node, "n1")
		b.Int64(schemas.EventTime, now+int64(r)*1000)
		b.Int64(schemas.TimeObserved, now+int64(r)*1000+500)
		b.Uint64(schemas.TimeBoot, uint64(r)*1000)
		b.Uint64(schemas.Sequence, uint64(r))
		b.Uint32(schemas.ProcessPID, uint32(4000+r))
		b.Uint32(schemas.ProcessParentPID, uint32(3000+p))
		b.Int64(schemas.ProcessStart, now)
		b.Uint64(schemas.ProcessStartBoot, uint64(r))
		b.Str(schemas.ProcessName, "sh")
		b.Str(schemas.ProcessExe, "/bin/sh")
		b.Str(schemas.ProcessCommand, "sh")
		b.Str(schemas.ProcessArgs, "-c sleep "+strconv.Itoa(r))
		b.Str(schemas.ProcessCwd, "/")
		b.Str(schemas.ParentName, "containerd-shim")
		b.Str(schemas.ParentExe, "/usr/bin/containerd-shim-runc-v2")
		b.List(schemas.AncestorNames, []string{"containerd-shim", "systemd"})
		b.List(schemas.AncestorExes, []string{"/usr/bin/containerd-shim-runc-v2", "/usr/lib/systemd/systemd"})
		b.Uint64(schemas.CgroupID, uint64(10000+p))
		b.Str(schemas.PodUID, benchUID(p))
		b.Str(schemas.ContainerID, benchContainer(p))
		b.Str(schemas.ContainerRuntime, "containerd")
		b.List(schemas.ProcessArgv, []string{"sh", "-c", "sleep " + strconv.Itoa(r)})
		b.Str(schemas.NetTransport, "tcp")
		b.Bytes16(schemas.NetPeerAddress, batch.IPv4([4]byte{10, 0, byte(r / 250 % 4), byte(r % 250)}))
		b.Uint32(schemas.NetPeerPort, 443)
		b.EndRow()
	}
	return b.Batch()
}

func benchUID(p int) string       { return fmt.Sprintf("6f3a1c%02d-7d1e-4f5a-9a3b-%012d", p%100, p) }
func benchContainer(p int) string { return fmt.Sprintf("%064x", 0xabc000+p) }

// benchMetadata is a cluster of pods pods with ten labels each.
func benchMetadata(pods int) *metadata {
	x := newIndex(time.Minute, 1000)
	for p := range pods {
		labels := map[string]string{"pod-template-hash": "7d9f8"}
		for i := range 9 {
			labels[fmt.Sprintf("app.kubernetes.io/label-%d", i)] = fmt.Sprintf("value-%d-of-%d", i, p)
		}
		x.setOwner(fmt.Sprint("rs", p), ref{"Deployment", fmt.Sprint("deploy-", p), fmt.Sprint("d", p)})
		x.setPod(&pod{head: head{uid: benchUID(p), namespace: fmt.Sprint("ns-", p%10), name: fmt.Sprintf("deploy-%d-7d9f8-abcde", p)}, node: "n1", serviceAccount: "default",
			controller: ref{"ReplicaSet", fmt.Sprintf("deploy-%d-7d9f8", p), fmt.Sprint("rs", p)}, labels: testReader().pairs(labels, allowList{"*"}), templateHash: "7d9f8",
			instances: []instance{{benchContainer(p), container{"app", "registry.example.com/team/app", "v1.2.3", "sha256:" + benchContainer(p), false}}},
			addresses: []address{batch.IPv4([4]byte{10, 0, byte(p / 250), byte(p % 250)})}, since: 1})
	}
	return &metadata{index: x, cluster: "test", synced: func() bool { return true }}
}

// BenchmarkEnrich measures what an event costs: the join alone, and the whole
// way from the bytes of a raw message to those of an enriched one.
func BenchmarkEnrich(b *testing.B) {
	for _, rows := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) { benchmarkEnrich(b, rows) })
	}
}

func benchmarkEnrich(b *testing.B, rows int) {
	const pods = 30
	for _, c := range []schemas.Class{schemas.Process, schemas.Network} {
		for _, meta := range []*metadata{nil, benchMetadata(pods)} {
			name := c.String() + "/host"
			raw := typical(c, rows, pods)
			if meta != nil {
				name = c.String() + "/pods"
			}
			enc, err := batch.Encode(raw)
			if err != nil {
				b.Fatal(err)
			}
			e := newEnricher(meta)
			b.Run(name+"/join", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := e.Enrich(raw, "test", "n1"); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
			})
			b.Run(name+"/whole", func(b *testing.B) {
				b.ReportAllocs()
				size := 0
				for b.Loop() {
					in, err := e.decode(enc[0].Data, c)
					if err != nil {
						b.Fatal(err)
					}
					out, err := e.Enrich(in, "test", "n1")
					if err != nil {
						b.Fatal(err)
					}
					parts, _, err := e.encode(out)
					if err != nil {
						b.Fatal(err)
					}
					size = len(parts[0].Data)
				}
				b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
				b.ReportMetric(float64(len(enc[0].Data))/float64(rows), "B/row-in")
				b.ReportMetric(float64(size)/float64(rows), "B/row-out")
			})
		}
	}
}

// TestJoinAllocatesByBatch: what joining allocates does not grow with the
// events of a batch, nor with what is known of their pods.
func TestJoinAllocatesByBatch(t *testing.T) {
	e := newEnricher(benchMetadata(30))
	for _, c := range []schemas.Class{schemas.Process, schemas.Network} {
		var allocs []float64
		for _, rows := range []int{200, 4000} {
			raw := typical(c, rows, 30)
			allocs = append(allocs, testing.AllocsPerRun(20, func() {
				if _, err := e.Enrich(raw, "test", "n1"); err != nil {
					t.Fatal(err)
				}
			}))
		}
		t.Logf("%s: %.0f allocations for 200 events, %.0f for 4,000", c, allocs[0], allocs[1])
		if allocs[1] > allocs[0]+5 {
			t.Errorf("%s: %.0f allocations for 200 events, %.0f for 4,000", c, allocs[0], allocs[1])
		}
	}
}

// BenchmarkService measures the whole service on a NATS server on this
// machine: from a raw batch of 100 events, published and acknowledged, to its
// settlement. With one lane nothing is done in parallel.
func BenchmarkService(b *testing.B) {
	const rows = 100
	for _, nodes := range []int{1, 16} {
		b.Run(fmt.Sprintf("%d-lanes", nodes), func(b *testing.B) {
			cfg, admin := startNATS(b)
			s := newSender(b, admin)
			enc, err := batch.Encode(typical(schemas.Process, rows, 30))
			if err != nil {
				b.Fatal(err)
			}
			for i := range b.N {
				s.send(schemas.RawSubject("test", fmt.Sprint("n", i%nodes), schemas.Process), enc[0].Data, rows)
			}
			b.ResetTimer()
			background(b, func(ctx context.Context) error { return Run(ctx, cfg) })
			eventually(b, "all are settled", func() bool { return pending(b, admin) == 0 })
			b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
