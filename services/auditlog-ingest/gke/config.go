package gke

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"

	"picket/services/auditlog-ingest/source"
)

// Config is the `gke` part of the configuration.
type Config struct {
	Subscriptions   []Subscription `yaml:"subscriptions" doc:"Pub/Sub subscriptions of log sinks, the main way. Each has the keys subscription (projects/<project>/subscriptions/<id>), name (of this source, the column node of its events; the subscription's id) and since (RFC 3339: entries that Cloud Logging had before are left to logs.until). Empty: none."`
	Logs            []Logs         `yaml:"logs" doc:"Places of Cloud Logging that are read by entries.list, for what was before a subscription and for small clusters. Each has the keys resource (projects/<project>, or a folder, an organization or a log view), name (of this source, the column node of its events; the last part of resource), start (now, beginning or a time in RFC 3339: where to begin without a checkpoint; now) and until (RFC 3339: where to stop; empty: never). Empty: none."`
	Clusters        []Cluster      `yaml:"clusters" doc:"Names of clusters: each has the keys project, location and cluster, as Google names them, and name, the same as in the cluster's sensors."`
	OtherClusters   string         `yaml:"other_clusters" doc:"What becomes of events of clusters that gke.clusters does not have: take (under the name <project>_<location>_<cluster>) or refuse (onto the dead-letter stream)."`
	Overlap         time.Duration  `yaml:"overlap" doc:"How long after Cloud Logging received an entry entries.list may begin to show it, 1m to 1h: what was received in this time is read again."`
	PollInterval    time.Duration  `yaml:"poll_interval" doc:"How often logs are read once they are read up to now, 1s to 10m."`
	Retention       time.Duration  `yaml:"retention" doc:"How long the log bucket keeps Data Access entries, 24h to 87600h: an ingester that was away for longer reports a gap."`
	ReadsPerMinute  int            `yaml:"reads_per_minute" doc:"Requests to entries.list a minute, 1 to 6000, of all logs together. Google allows 60 to a project, which the console and others share."`
	PubSubEndpoint  string         `yaml:"pubsub_endpoint" doc:"Another address for Pub/Sub: host:port of a private endpoint, or http://127.0.0.1:port of an emulator, which is reached without TLS and credentials. Empty: Google's."`
	LoggingEndpoint string         `yaml:"logging_endpoint" doc:"Another address for Cloud Logging, as gke.pubsub_endpoint."`
}

// Subscription is one Pub/Sub subscription.
type Subscription struct {
	Subscription string `yaml:"subscription"`
	Name         string `yaml:"name"`
	Since        string `yaml:"since"`
}

// Logs is one place whose entries are listed.
type Logs struct {
	Resource string       `yaml:"resource"`
	Name     string       `yaml:"name"`
	Start    source.Start `yaml:"start"`
	Until    string       `yaml:"until"`
}

// Cluster is the name of a cluster in Picket.
type Cluster struct {
	Project  string `yaml:"project"`
	Location string `yaml:"location"`
	Cluster  string `yaml:"cluster"`
	Name     string `yaml:"name"`
}

// Values of Config.OtherClusters.
const (
	OthersTake   = "take"
	OthersRefuse = "refuse"
)

// DefaultConfig returns the defaults: off.
func DefaultConfig() Config {
	return Config{OtherClusters: OthersTake, Overlap: 5 * time.Minute, PollInterval: 15 * time.Second, Retention: 30 * 24 * time.Hour, ReadsPerMinute: 50}
}

// Enabled reports whether there is anything to read.
func (c Config) Enabled() bool { return len(c.Subscriptions)+len(c.Logs) > 0 }

var (
	subscriptionPath = regexp.MustCompile(`^projects/([^/]+)/subscriptions/([^/]+)$`)
	resourcePath     = regexp.MustCompile(`^(projects|folders|organizations|billingAccounts)/[^/]+(/locations/[^/]+/buckets/[^/]+/views/[^/]+)?$`)
)

// Validate checks the part; messages name the YAML key.
func (c Config) Validate() error {
	if !c.Enabled() {
		return nil
	}
	names := map[string]string{}
	unique := func(key, name string) error {
		if err := source.ValidName(key, name); err != nil {
			return err
		}
		if first, ok := names[name]; ok {
			return fmt.Errorf("%s and %s are both %q: sources have different names", first, key, name)
		}
		names[name] = key
		return nil
	}
	for i, s := range c.Subscriptions {
		key := fmt.Sprintf("gke.subscriptions[%d]", i)
		if !subscriptionPath.MatchString(s.Subscription) {
			return fmt.Errorf("%s.subscription is %q: use projects/<project>/subscriptions/<id>", key, s.Subscription)
		}
		if err := unique(key+".name", s.name()); err != nil {
			return err
		}
		if _, err := instant(key+".since", s.Since); err != nil {
			return err
		}
	}
	for i, l := range c.Logs {
		key := fmt.Sprintf("gke.logs[%d]", i)
		if !resourcePath.MatchString(l.Resource) {
			return fmt.Errorf("%s.resource is %q: use projects/<project>, folders/<id>, organizations/<id>, or a log view projects/<project>/locations/<location>/buckets/<bucket>/views/<view>", key, l.Resource)
		}
		if err := unique(key+".name", l.name()); err != nil {
			return err
		}
		if err := l.start().Validate(key + ".start"); err != nil {
			return err
		}
		if _, err := instant(key+".until", l.Until); err != nil {
			return err
		}
	}
	seen := map[Cluster]bool{}
	for i, x := range c.Clusters {
		key := fmt.Sprintf("gke.clusters[%d]", i)
		if x.Project == "" || x.Location == "" || x.Cluster == "" {
			return fmt.Errorf("%s: give project, location and cluster, as in the resource labels of the cluster's log entries", key)
		}
		if err := source.ValidName(key+".name", x.Name); err != nil {
			return err
		}
		place := Cluster{x.Project, x.Location, x.Cluster, ""}
		if seen[place] {
			return fmt.Errorf("%s: the cluster %s of %s in %s stands there twice", key, x.Cluster, x.Project, x.Location)
		}
		seen[place] = true
	}
	if c.OtherClusters != OthersTake && c.OtherClusters != OthersRefuse {
		return fmt.Errorf("gke.other_clusters is %q: use %s or %s", c.OtherClusters, OthersTake, OthersRefuse)
	}
	if c.OtherClusters == OthersRefuse && len(c.Clusters) == 0 {
		return errors.New("gke.other_clusters is refuse and gke.clusters is empty: nothing would be taken")
	}
	for _, d := range []struct {
		key        string
		v, lo, max time.Duration
	}{
		{"gke.overlap", c.Overlap, time.Minute, time.Hour}, {"gke.poll_interval", c.PollInterval, time.Second, 10 * time.Minute},
		{"gke.retention", c.Retention, 24 * time.Hour, 87600 * time.Hour},
	} {
		if d.v < d.lo || d.v > d.max {
			return fmt.Errorf("%s is %s: give %s to %s", d.key, d.v, d.lo, d.max)
		}
	}
	if c.ReadsPerMinute < 1 || c.ReadsPerMinute > 6000 {
		return fmt.Errorf("gke.reads_per_minute is %d: give 1 to 6000", c.ReadsPerMinute)
	}
	return errors.Join(endpoint("gke.pubsub_endpoint", c.PubSubEndpoint), endpoint("gke.logging_endpoint", c.LoggingEndpoint))
}

func (s Subscription) name() string {
	if s.Name != "" {
		return s.Name
	}
	return s.Subscription[strings.LastIndexByte(s.Subscription, '/')+1:]
}

func (l Logs) name() string {
	if l.Name != "" {
		return l.Name
	}
	return l.Resource[strings.LastIndexByte(l.Resource, '/')+1:]
}

func (l Logs) start() source.Start {
	if l.Start == "" {
		return source.StartNow
	}
	return l.Start
}

// instant reads a time setting; empty is the zero time.
func instant(key, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, fmt.Errorf("%s is %q: use a time such as 2026-01-31T00:00:00Z", key, s)
	}
	return t, nil
}

// endpoint checks the setting of an address. Only an address of this host is
// reached without TLS: nothing secret is sent there.
func endpoint(key, s string) error {
	plain, isPlain := strings.CutPrefix(s, plaintext)
	if s == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(plain)
	if strings.Contains(plain, "@") { // perhaps a password, which nobody should read in a log
		return fmt.Errorf("%s has an @ in it: use host:port, or http://127.0.0.1:port", key)
	}
	if err != nil || strings.Contains(plain, "/") {
		return fmt.Errorf("%s is %q: use host:port, or http://127.0.0.1:port", key, s)
	}
	if ip := net.ParseIP(host); isPlain && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%s is %q: without TLS only an address of this host is taken, such as http://127.0.0.1:8085", key, s)
	}
	return nil
}

const plaintext = "http://"
