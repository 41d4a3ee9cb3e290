package sensor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"picket/bpf"
	"picket/internal/bus"
	"picket/schemas"
	"picket/services/sensor/containerid"
	"picket/services/sensor/proctree"
)

// ignored is what the lanes look at of the selection that is in force.
type ignored struct {
	containers []schemas.ContainerSelector
	programs   map[string]bool
}

// apply puts a selection in force, beside the configuration. On an error what
// was in force stays so, except where the kernel refuses a part of it.
func (s *sensor) apply(sel schemas.Selection) error {
	if err := sel.Validate(); err != nil {
		return err
	}
	k := s.cfg.Kernel
	watched := slices.Concat(k.WatchedPaths, sel.WatchedPaths)
	slices.Sort(watched)
	watched = slices.Compact(watched)
	unwanted := k.Unwanted
	if sel.UnwantedCalls != nil {
		unwanted = *sel.UnwantedCalls
	}
	unwanted = slices.DeleteFunc(slices.Clone(unwanted), func(call string) bool { return slices.Contains(sel.WantedCalls, call) })
	for class, c := range classes {
		if len(sel.Classes) > 0 && !slices.Contains(sel.Classes, c.String()) {
			unwanted = append(unwanted, bpf.Calls(bpf.Class(class))...)
		}
	}
	now := &ignored{programs: map[string]bool{}}
	for _, text := range slices.Concat(k.Ignore.Containers, sel.Ignore.Containers) {
		c, err := schemas.ParseContainerSelector(text)
		if err != nil {
			return err
		}
		now.containers = append(now.containers, c)
	}
	programs := slices.Concat(k.Ignore.Programs, sel.Ignore.Programs)
	for _, p := range programs {
		now.programs[p] = true
	}
	var peers []bpf.Peer
	for _, text := range slices.Concat(k.Ignore.Peers, sel.Ignore.Peers) {
		network, port, err := schemas.ParsePeer(text)
		if err != nil {
			return err
		}
		peers = append(peers, bpf.Peer{Network: network, Port: port})
	}

	// What is refused comes first: the calls that follow take what was checked.
	if err := s.kernel.SetUnwanted(unwanted); err != nil {
		return fmt.Errorf("kernel.unwanted_calls: %w", err)
	}
	if err := s.kernel.SetWatchedPaths(watched); err != nil {
		return fmt.Errorf("kernel.watched_paths: %w", err)
	}
	if err := s.kernel.SetIgnoredPeers(peers); err != nil {
		return fmt.Errorf("kernel.ignore.peers: %w", err)
	}
	if err := s.kernel.SetIgnoreDNS(len(sel.Classes) > 0 && !slices.Contains(sel.Classes, schemas.DNS.String())); err != nil {
		return err
	}
	// From here on the lanes mark by it what they see; a mark that is set before
	// the kernel has begun anew is set again at the next event.
	s.ignored.Store(now)
	if err := s.kernel.SetIgnoredPrograms(programs); err != nil {
		return fmt.Errorf("kernel.ignore.programs: %w", err)
	}
	if err := s.kernel.SetIgnoringCgroups(len(now.containers) > 0); err != nil {
		return err
	}
	if len(now.containers) > 0 {
		s.cgroups.Each(func(id uint64, c containerid.Info) {
			n, _ := s.runtimes.Known(c.ContainerID)
			s.ignoreContainer(id, c, n)
		})
	}
	return nil
}

// ignoreContainer marks a cgroup in the kernel if its container is one that is
// ignored.
func (s *sensor) ignoreContainer(cgroup uint64, c containerid.Info, n containerid.Names) {
	now := s.ignored.Load()
	if now == nil || len(now.containers) == 0 || c.ContainerID == "" {
		return
	}
	value := func(key string) string {
		switch key {
		case "id":
			return c.ContainerID
		case "pod_uid":
			return c.PodUID
		case "namespace":
			return n.PodNamespace
		case "pod":
			return n.Pod
		case "name":
			return n.Container
		}
		return n.Image
	}
	for _, sel := range now.containers {
		if sel.Match(value) {
			if err := s.kernel.IgnoreCgroup(cgroup); err != nil {
				s.seldom.Warn("a container that is to be ignored is not", "container", c.ContainerID, "error", err)
			}
			return
		}
	}
}

// ignoreProcess marks a process in the kernel that runs an ignored program, or
// descends from one, and did so before that was ignored.
func (s *sensor) ignoreProcess(p *proctree.Proc, ancestors []*proctree.Proc, start uint64) {
	now := s.ignored.Load()
	if now == nil || len(now.programs) == 0 {
		return
	}
	mine := now.programs[p.Exe]
	if !mine && !slices.ContainsFunc(ancestors, func(a *proctree.Proc) bool { return now.programs[a.Exe] }) {
		return
	}
	if err := s.kernel.IgnoreProcess(p.PID, start, true); err != nil {
		s.seldom.Warn("a process that is to be ignored is not", "pid", p.PID, "error", err)
	}
}

// selectionPath keeps the last selection for a start without NATS.
func (s *sensor) selectionPath() string { return filepath.Join(s.cfg.StateDir, "selection.json") }

// loadSelection returns the last selection that this sensor had.
func (s *sensor) loadSelection() schemas.Selection {
	var sel schemas.Selection
	b, err := os.ReadFile(s.selectionPath())
	if errors.Is(err, os.ErrNotExist) {
		return sel
	}
	if err == nil {
		if err = json.Unmarshal(b, &sel); err == nil {
			err = sel.Validate()
		}
	}
	if err != nil {
		s.log.Warn("the selection of the run before is not taken up", "error", err)
		return schemas.Selection{}
	}
	return sel
}

// follow applies this node's key of BucketControl whenever it changes, until ctx
// ends. Without NATS, or without the bucket, what is in force stays so.
func (s *sensor) follow(ctx context.Context, b *bus.Bus) {
	key := schemas.ControlKey(s.cfg.Cluster, s.cfg.Node)
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := s.followOnce(ctx, b, key)
		if ctx.Err() != nil {
			return
		}
		s.log.Log(ctx, level(wait), "no selection is received, trying again; what is in force stays so", "bucket", schemas.BucketControl, "key", key, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// level keeps the first attempts, while NATS starts, out of sight.
func level(wait time.Duration) slog.Level {
	if wait < 8*time.Second {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func (s *sensor) followOnce(ctx context.Context, b *bus.Bus, key string) error {
	kv, err := b.JS.KeyValue(ctx, schemas.BucketControl)
	if err != nil {
		return err
	}
	w, err := kv.Watch(ctx, key)
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-w.Updates():
			if !ok {
				return errors.New("the watch has ended")
			}
			if e != nil { // nil: all there was has been received
				s.selected(e)
			}
		}
	}
}

// selected applies one value of the key.
func (s *sensor) selected(e jetstream.KeyValueEntry) {
	var sel schemas.Selection
	var err error
	if e.Operation() == jetstream.KeyValuePut {
		err = json.Unmarshal(e.Value(), &sel)
	}
	if err == nil {
		err = s.apply(sel)
	}
	if err != nil {
		s.metrics.refused.Inc()
		s.log.Error("the selection is refused; the one before stays in force", "bucket", e.Bucket(), "key", e.Key(), "revision", e.Revision(), "error", err)
		return
	}
	s.metrics.selection.Set(float64(e.Revision()))
	s.health.Count("", counterSelection, e.Revision())
	s.log.Info("selection applied", "revision", e.Revision(), "classes", sel.Classes, "watched_paths", len(sel.WatchedPaths),
		"ignored_containers", len(sel.Ignore.Containers), "ignored_programs", len(sel.Ignore.Programs), "ignored_peers", len(sel.Ignore.Peers))
	if b, err := json.Marshal(sel); err == nil {
		tmp := s.selectionPath() + ".tmp"
		if err = os.WriteFile(tmp, b, 0o640); err == nil {
			err = os.Rename(tmp, s.selectionPath())
		}
		if err != nil {
			s.log.Warn("the selection is not kept: a start without NATS would begin without it", "error", err)
		}
	}
}
