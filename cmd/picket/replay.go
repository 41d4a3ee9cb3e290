package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/internal/correlation"
	"picket/internal/rules"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/auditlog-ingest/gke"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
	"picket/services/detector"
	"picket/services/enricher"
)

const (
	maxReplayFile     = 2 << 30 // bytes: a file is read as a whole
	maxReplayClusters = 256     // of a file of audit records
	maxRefusedShown   = 10      // of a file
)

func newReplay() *cobra.Command {
	var (
		format string
		paths  []string
	)
	c := &cobra.Command{
		Use:   "replay --format " + replayFormats() + " FILE...",
		Short: "Run rules over recordings, offline: alerts are JSON lines on standard output",
		Long: `Runs rules over recordings without NATS or ClickHouse. Each alert is one JSON
line on standard output, with rule, severity and time, and nothing else is
written there. The exit code is 0 whether or not alerts were raised.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			set, warnings, err := detector.LoadRules(paths)
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w.String())
			}
			if err != nil {
				return err
			}
			out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			r := &replay{eval: set.NewCorrelator(replayLimits), join: enricher.New(), out: json.NewEncoder(out)}
			r.out.SetEscapeHTML(false)
			read := r.capture
			if auditFormats[format] != nil {
				read = func(data []byte) error { return r.audit(format, data) }
			} else if format != "capture" {
				return fmt.Errorf("--format %q: use one of %s", format, replayFormats())
			}
			for _, name := range files {
				if err := r.file(name, read, cmd.ErrOrStderr()); err != nil {
					return errors.Join(fmt.Errorf("%s: %w", name, err), out.Flush())
				}
			}
			if err := errors.Join(r.correlated(r.eval.End()), out.Flush()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d events, %d alerts\n", r.events, r.alerts)
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "", "capture (of picket record), kube-audit (audit.k8s.io/v1 events, one a line), or records as a cloud stores them, one a line: "+replayFormats())
	c.Flags().StringArrayVar(&paths, "rules", nil, "rule file or folder, repeatable, in place of the pack that comes with Picket")
	if err := c.MarkFlagRequired("format"); err != nil {
		panic(err) // the flag is declared above
	}
	return c
}

type replay struct {
	eval *rules.Correlator
	join *enricher.Enricher
	out  *json.Encoder

	events, alerts int
	refused        int                       // records of the present file
	refuse         func(line int, err error) // counts and tells of one
}

func (r *replay) file(name string, read func([]byte) error, errOut io.Writer) error {
	in := os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxReplayFile+1))
	if err != nil {
		return err
	}
	if len(data) > maxReplayFile {
		return fmt.Errorf("larger than %d bytes", maxReplayFile)
	}
	r.refused, r.refuse = 0, func(line int, err error) {
		if r.refused++; r.refused <= maxRefusedShown {
			fmt.Fprintf(errOut, "%s:%d: refused: %v\n", name, line, err)
		}
	}
	if err := read(data); err != nil {
		return err
	}
	if r.refused > maxRefusedShown {
		fmt.Fprintf(errOut, "%s: %d more records refused\n", name, r.refused-maxRefusedShown)
	}
	return nil
}

func (r *replay) capture(data []byte) error { return batch.ReadCapture(data, r.evaluate) }

// auditFormats are the kinds of files of audit records: what each makes of a
// line. A cloud's folder says what it wraps records in.
var auditFormats = map[string]func(line []byte, yield func(source.Record) error) error{
	"kube-audit": func(line []byte, yield func(source.Record) error) error {
		return yield(source.Record{Item: record.Item{Text: line}})
	},
	"gke": gke.Records,
	// "eks": eks.Records, "aks": aks.Records,
}

// replayFormats lists what --format may be.
func replayFormats() string {
	return strings.Join(append([]string{"capture"}, slices.Sorted(maps.Keys(auditFormats))...), "|")
}

// audit evaluates a file of audit records, one or more on a line.
func (r *replay) audit(format string, data []byte) error {
	type cluster struct {
		n *auditlogingest.Normalizer
		b *batch.Builder
	}
	clusters := map[string]*cluster{}
	flush := func(c *cluster) error {
		if c.b.Len() == 0 {
			return nil
		}
		err := r.evaluate(c.b.Batch())
		c.b.Reset()
		return err
	}
	kind := format
	if kind == "kube-audit" {
		kind = "file"
	}
	number := 0
	for line := range bytes.Lines(data) {
		number++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		err := auditFormats[format](line, func(rec source.Record) error {
			name := cmp.Or(rec.Cluster, "replay")
			if err := source.ValidName("cluster", name); err != nil {
				r.refuse(number, err)
				return nil
			}
			c := clusters[name]
			if c == nil {
				if len(clusters) == maxReplayClusters {
					return stopped{fmt.Errorf("records of more than %d clusters", maxReplayClusters)}
				}
				c = &cluster{auditlogingest.NewNormalizer(name, "file", kind, auditlogingest.DefaultRedact()), batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))}
				clusters[name] = c
			}
			if err := c.n.AppendRecord(c.b, rec); err != nil {
				r.refuse(number, err)
				return nil
			}
			if c.b.Full() {
				if err := flush(c); err != nil {
					return stopped{err}
				}
			}
			return nil
		})
		var stop stopped
		switch {
		case errors.As(err, &stop):
			return stop.error
		case err != nil:
			r.refuse(number, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(clusters)) {
		if err := flush(clusters[name]); err != nil {
			return err
		}
	}
	return nil
}

// stopped is an error that is not of the line.
type stopped struct{ error }

// replayedAlert is a replayed alert.
type replayedAlert struct {
	Time       time.Time         `json:"time"`
	Severity   string            `json:"severity"`
	Rule       string            `json:"rule"`
	Message    string            `json:"message"`
	AlertID    string            `json:"alert_id"`
	Revision   uint32            `json:"revision,omitempty"` // from 2: the alert was amended
	EventID    string            `json:"event_id"`
	Class      string            `json:"class"`
	Cluster    string            `json:"cluster"`
	Node       string            `json:"node"`
	Priority   string            `json:"priority"`
	Tags       []string          `json:"tags,omitempty"`
	Techniques []string          `json:"techniques,omitempty"`
	Fields     map[string]string `json:"output_fields,omitempty"`
}

func (r *replay) evaluate(b *batch.Batch) error {
	joined, err := r.join.Enrich(b, schemas.Token(b.Str(schemas.Cluster, 0)), schemas.Token(b.Str(schemas.Node, 0)))
	if err != nil {
		return err
	}
	r.events += joined.Rows()
	now := time.Now()
	var found []*schemas.Finding
	several := r.eval.Eval(joined, func(m rules.Match) { found = append(found, alert.New(m, joined, now)) }, func(f rules.Feed) []byte {
		doc, _ := alert.Part(f, joined, now) // without it the alert says less
		return doc
	})
	for _, f := range found {
		if err := r.print(f); err != nil {
			return err
		}
	}
	return r.correlated(several)
}

// correlated prints alerts of rules about several events.
func (r *replay) correlated(several []correlation.Alert) error {
	for i := range several {
		f, err := alert.Correlated(&several[i], time.Now())
		if err != nil {
			return err
		}
		if err := r.print(f); err != nil {
			return err
		}
	}
	return nil
}

// replayLimits bound what rules about several events remember in a replay.
var replayLimits = correlation.Limits{Lateness: detector.DefaultConfig().Correlation.Lateness, Keys: 200_000, Bytes: 256 << 20}

// print writes one alert, or a later revision of one.
func (r *replay) print(f *schemas.Finding) error {
	if f.Metadata.Sequence == 1 {
		r.alerts++
	}
	a := replayedAlert{Time: f.Unmapped.Time, Severity: f.SeverityID.String(), Rule: f.Unmapped.Rule, Message: f.Message,
		AlertID: f.FindingInfo.UID, EventID: f.Evidences[0].UID, Class: f.Unmapped.Class, Cluster: f.Unmapped.Cluster, Node: f.Unmapped.Node,
		Priority: f.Unmapped.Priority, Tags: f.Metadata.Labels, Fields: f.Unmapped.Fields}
	if f.Metadata.Sequence > 1 {
		a.Revision = f.Metadata.Sequence
	}
	for _, t := range f.FindingInfo.Attacks {
		if !slices.Contains(a.Techniques, t.ID()) {
			a.Techniques = append(a.Techniques, t.ID())
		}
	}
	return r.out.Encode(a)
}
