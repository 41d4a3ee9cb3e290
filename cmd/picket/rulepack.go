package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"picket/internal/bus"
	"picket/internal/rulepack"
	"picket/internal/rules"
	"picket/internal/terminal"
	defaults "picket/rules"
	"picket/schemas"
)

// rulePackCommands are those of `picket rules` that are about the pack in NATS.
func rulePackCommands(t *target) []*cobra.Command {
	var by string
	var withDefault bool
	push := &cobra.Command{
		Use:   "push PATH...",
		Short: "Check rule files and folders and give them to all detectors, as one pack in place of their own rules",
		Long: `Checks rule files and folders, in this order, and stores them as one revision in NATS.
Every detector takes it within seconds, without a restart, in place of the rules of its
configuration; ` + "`picket status`" + ` shows which has taken what. Nothing is stored that does not load.`,
		Example: `  picket rules push --with-default exceptions.yaml
  picket rules push rules/ own/`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var files []rules.Source
			if withDefault {
				files = defaults.Default()
			}
			own, err := rules.ReadPaths(args...)
			if err != nil {
				return err
			}
			if files = append(files, own...); len(files) == 0 {
				return errors.New("name the files or folders to push, or --with-default")
			}
			pack, err := rulepack.New(files, by, time.Now())
			if err != nil {
				return err
			}
			data, err := pack.Encode()
			if err != nil {
				return err
			}
			set, warnings, err := rules.Load(pack.Sources(), rules.Options{})
			if err != nil {
				return fmt.Errorf("nothing is pushed: the rules do not load:\n%w", err)
			}
			return t.withPack(cmd, func(ctx context.Context, _ *bus.Bus, kv jetstream.KeyValue) error {
				revision, err := kv.Put(ctx, schemas.RulePackKey, data)
				if err != nil {
					return fmt.Errorf("push the pack: %w", err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "revision %d: %s in %s, %s, %d bytes\n", revision, number(len(set.Rules()), "rule"), number(len(files), "file"), number(len(warnings), "warning"), len(data))
				return nil
			})
		},
	}
	push.Flags().BoolVar(&withDefault, "with-default", false, "put the pack that comes with Picket before the files")
	push.Flags().StringVar(&by, "by", pusher(), "`name` of who pushes it, for picket rules history")

	var revision uint64
	pull := &cobra.Command{
		Use:   "pull DIR",
		Short: "Write the files of the pushed pack into a new or empty folder",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.withPack(cmd, func(ctx context.Context, _ *bus.Bus, kv jetstream.KeyValue) error {
				e, err := packRevision(ctx, kv, revision)
				if err != nil {
					return err
				}
				pack, err := rulepack.Decode(e.Value())
				if err != nil {
					return fmt.Errorf("revision %d: %w", e.Revision(), err)
				}
				if err := writePack(args[0], pack); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "revision %d: %s in %s\n", e.Revision(), number(len(pack.Files), "file"), args[0])
				return nil
			})
		},
	}
	pull.Flags().Uint64Var(&revision, "revision", 0, "which `revision` of picket rules history; 0: the newest")

	history := &cobra.Command{
		Use:   "history",
		Short: fmt.Sprintf("List the last %d revisions of the pushed pack", schemas.RulePackRevisions),
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withPack(cmd, func(ctx context.Context, _ *bus.Bus, kv jetstream.KeyValue) error {
				entries, err := kv.History(ctx, schemas.RulePackKey)
				if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
					return err
				}
				if len(entries) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "no pack was pushed: every detector has the rules of its configuration")
					return nil
				}
				out := newTable(cmd.OutOrStdout(), "REVISION", "AT (UTC)", "BY", "FILES", "BYTES")
				for _, e := range slices.Backward(entries) {
					at, n := e.Created().UTC().Format(time.DateTime), fmt.Sprint(e.Revision())
					if e.Operation() != jetstream.KeyValuePut {
						out.row(n, at, "", "withdrawn")
						continue
					}
					by, files := "", "no pack: not pushed by `picket rules push`"
					if p, err := rulepack.Decode(e.Value()); err == nil {
						by, files = p.By, fmt.Sprint(len(p.Files))
					}
					out.row(n, at, by, files, fmt.Sprint(len(e.Value())))
				}
				return out.flush()
			})
		},
	}
	withdraw := &cobra.Command{
		Use:   "withdraw",
		Short: "Take the pushed pack back: every detector uses the rules of its configuration again",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withPack(cmd, func(ctx context.Context, _ *bus.Bus, kv jetstream.KeyValue) error {
				if _, err := kv.Get(ctx, schemas.RulePackKey); errors.Is(err, jetstream.ErrKeyNotFound) {
					return errors.New("no pack is pushed: every detector has the rules of its configuration")
				}
				if err := kv.Delete(ctx, schemas.RulePackKey); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "withdrawn")
				return nil
			})
		},
	}
	return []*cobra.Command{push, pull, history, withdraw}
}

// pusher names who runs the command; nobody checks it.
func pusher() string {
	host, _ := os.Hostname() // empty: not told
	if u, err := user.Current(); err == nil {
		return u.Username + "@" + host
	}
	return host
}

// withPack calls do with NATS and the bucket of the pack.
func (t *target) withPack(cmd *cobra.Command, do func(context.Context, *bus.Bus, jetstream.KeyValue) error) error {
	cfg, err := t.bus(schemas.ServiceAdmin)
	if err != nil {
		return err
	}
	b, err := bus.Connect(cfg, schemas.ServiceAdmin, commandLog(cmd))
	if err != nil {
		return err
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer cancel()
	kv, err := rulepack.Bucket(ctx, b.JS)
	if err != nil {
		return err
	}
	return do(ctx, b, kv)
}

var errNoPack = errors.New("no pack is pushed: `picket rules push PATH` pushes one")

// packRevision returns a revision of the pack, the newest for 0.
func packRevision(ctx context.Context, kv jetstream.KeyValue, revision uint64) (jetstream.KeyValueEntry, error) {
	var e jetstream.KeyValueEntry
	var err error
	if revision == 0 {
		e, err = kv.Get(ctx, schemas.RulePackKey)
	} else {
		e, err = kv.GetRevision(ctx, schemas.RulePackKey, revision)
	}
	switch {
	case err == nil:
		return e, nil
	case errors.Is(err, jetstream.ErrKeyNotFound) && revision > 0:
		return nil, fmt.Errorf("there is no revision %d of the pack: `picket rules history` lists those that are kept", revision)
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, errNoPack
	}
	return nil, err
}

// writePack writes the files of a pack into a folder that has none. There they have
// names that load in the order of the pack: `picket rules push` of the folder pushes
// the same rules again.
func writePack(dir string, pack *rulepack.Pack) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err != nil {
		return err
	} else if len(entries) > 0 {
		return fmt.Errorf("%s is not empty: name another folder", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for i, name := range pack.FileNames() {
		if err := root.WriteFile(name, []byte(pack.Files[i].Text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// rulesInForce returns the rule files that the detectors evaluate, so far as they
// can be had from here, and says which those are: the revision of the pushed pack
// that is in force, else the pack that comes with Picket.
func (t *target) rulesInForce(cmd *cobra.Command) (files []rules.Source, what string, err error) {
	const shipped = schemas.ShippedPack
	if t.nats == "" && t.clickhouse != "" {
		return defaults.Default(), shipped + " (NATS knows what is in force: --nats names it)", nil
	}
	if _, err := t.bus(schemas.ServiceAdmin); err != nil { // the statements can be had without a Picket that runs
		return defaults.Default(), shipped + " (no Picket runs here that has others)", nil
	}
	err = t.withPack(cmd, func(ctx context.Context, b *bus.Bus, kv jetstream.KeyValue) error {
		states, err := rulesStates(ctx, b)
		if err != nil {
			return err
		}
		var revision uint64
		if n := len(states); n > 0 { // the one that loaded last has the newest
			if revision = states[n-1].Revision; revision == 0 {
				if files, what = defaults.Default(), shipped; states[n-1].Source != shipped {
					what += fmt.Sprintf(" (the detector on %s has %s: --rules names them)", states[n-1].Host, states[n-1].Source)
				}
				return nil
			}
		}
		e, err := packRevision(ctx, kv, revision)
		if revision == 0 && errors.Is(err, errNoPack) {
			files, what = defaults.Default(), shipped
			return nil
		}
		if err != nil {
			return err
		}
		pack, err := rulepack.Decode(e.Value())
		if err != nil {
			return fmt.Errorf("revision %d: %w", e.Revision(), err)
		}
		files, what = pack.Sources(), fmt.Sprintf("revision %d of the pushed pack", e.Revision())
		return nil
	})
	return files, what, err
}

// rulesStates returns what rules each detector that runs evaluates, the one that
// loaded them last at the end.
func rulesStates(ctx context.Context, b *bus.Bus) ([]schemas.RulesState, error) {
	var states []schemas.RulesState
	err := eachState(ctx, b, schemas.RulesStatePrefix+"*", func(e jetstream.KeyValueEntry) error {
		var s schemas.RulesState
		if err := json.Unmarshal(e.Value(), &s); err != nil {
			return err
		}
		if time.Since(e.Created()) < 3*schemas.RulesStateEvery {
			states = append(states, s)
		}
		return nil
	})
	slices.SortFunc(states, func(a, b schemas.RulesState) int { return a.Loaded.Compare(b.Loaded) })
	return states, err
}

// eachState calls each for the entries of BucketState whose keys match, in the order
// of the keys.
func eachState(ctx context.Context, b *bus.Bus, pattern string, each func(jetstream.KeyValueEntry) error) error {
	kv, err := b.JS.KeyValue(ctx, schemas.BucketState)
	if err != nil {
		return fmt.Errorf("bucket %s: %w (run `picket migrate`)", schemas.BucketState, err)
	}
	list, err := kv.ListKeysFiltered(ctx, pattern)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", schemas.BucketState, err)
	}
	var keys []string
	for k := range list.Keys() {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		e, err := kv.Get(ctx, k)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue // its service has just ended
		}
		if err == nil {
			err = each(e)
		}
		if err != nil {
			return fmt.Errorf("bucket %s: key %s: %w", schemas.BucketState, k, err)
		}
	}
	return nil
}

// showRulesInForce shows what rules each detector evaluates, and what it refuses.
func showRulesInForce(ctx context.Context, b *bus.Bus, out io.Writer) error {
	states, err := rulesStates(ctx, b)
	if err != nil {
		return err
	}
	if len(states) == 0 {
		fmt.Fprint(out, "No detector says what rules it has: none runs, or none reaches NATS.\n\n")
		return nil
	}
	t := newTable(out, "DETECTOR ON", "RULES", "FROM", "SINCE (UTC)", "WARNINGS")
	for _, s := range states {
		t.row(s.Host, fmt.Sprint(s.Rules), s.Source, s.Loaded.Format(time.DateTime), fmt.Sprint(s.Warnings))
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	people := terminal.NewWriter(out)
	for _, s := range states {
		if r := s.Refused; r != nil {
			fmt.Fprintf(people, "REFUSED on %s since %s: %s; what was in force stays.\n%s\n\n", s.Host, r.At.Format(time.DateTime), r.Source, r.Reason)
		}
	}
	return people.Close()
}
