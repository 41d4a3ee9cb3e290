package eks

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"picket/internal/config"
)

func TestValidate(t *testing.T) {
	good := func() Config {
		c := DefaultConfig()
		c.Region = "eu-central-1"
		c.Clusters = []Cluster{{Name: "a"}, {Name: "b", EKSName: "b-eks", Region: "us-gov-west-1", RoleARN: "arn:aws-us-gov:iam::123456789012:role/path/picket", ExternalID: "x", Endpoint: "https://vpce-1.example:8443"}}
		return c
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("a part that is off: %v", err)
	}
	for want, change := range map[string]func(*Config){
		"eks.poll is 0s":                         func(c *Config) { c.Poll = 0 },
		"eks.overlap is 9m0s":                    func(c *Config) { c.Overlap = 9 * time.Minute },
		"eks.requests_per_second is 0":           func(c *Config) { c.RequestsPerSecond = 0 },
		"eks.start is \"yesterday\"":             func(c *Config) { c.Start = "yesterday" },
		"eks.clusters has 1001 entries":          func(c *Config) { c.Clusters = make([]Cluster, 1001) },
		"eks.clusters[0].name is \"\"":           func(c *Config) { c.Clusters[0].Name = "" },
		"eks.clusters[0].name is \"" + long:      func(c *Config) { c.Clusters[0].Name = long },
		"eks.clusters[1].name is \"a\", as":      func(c *Config) { c.Clusters[1].Name = "a" },
		"eks.clusters[0].region is \"\"":         func(c *Config) { c.Region = "" },
		"eks.clusters[0].log_group is \"a b\"":   func(c *Config) { c.Clusters[0].LogGroup = "a b" },
		"eks.clusters[0].role_arn is \"picket\"": func(c *Config) { c.Clusters[0].RoleARN = "picket" },
		"eks.clusters[0].external_id goes with":  func(c *Config) { c.Clusters[0].ExternalID = "x" },
		"eks.clusters[0].endpoint is no URL":     func(c *Config) { c.Endpoint = "https://user:password@example" },
		"eks.clusters[1].log_group: /aws/eks/a/cluster is read as cluster a already": func(c *Config) {
			c.Clusters[1] = Cluster{Name: "b", EKSName: "a"}
		},
	} {
		c := good()
		change(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
		if err != nil && strings.Contains(err.Error(), "password") {
			t.Errorf("a password is in %v", err)
		}
	}
}

var long = strings.Repeat("n", 125)

// TestFilled says what holds for a cluster.
func TestFilled(t *testing.T) {
	c := Config{Region: "r-1", RoleARN: "own", ExternalID: "id", Endpoint: "https://e"}
	for _, tt := range []struct{ in, want Cluster }{
		{Cluster{Name: "a"}, Cluster{"a", "a", "/aws/eks/a/cluster", "r-1", "own", "id", "https://e"}},
		{Cluster{Name: "a", EKSName: "b", RoleARN: "other"}, Cluster{"a", "b", "/aws/eks/b/cluster", "r-1", "other", "id", "https://e"}},
		{Cluster{"a", "b", "c", "d-1", "e", "f", "g"}, Cluster{"a", "b", "c", "d-1", "e", "f", "g"}},
	} {
		if got := c.filled(tt.in); got != tt.want {
			t.Errorf("%+v becomes %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

// TestDocumented holds every setting to a doc tag.
func TestDocumented(t *testing.T) {
	for _, k := range append(config.Keys(DefaultConfig()), config.Keys(Cluster{})...) {
		if k.Doc == "" {
			t.Errorf("%s has no doc tag", k.Name)
		}
	}
}

// TestPasses steps through the clockwork of a source: what is read when, and
// what counts as done after it.
func TestPasses(t *testing.T) {
	p := paceOf(DefaultConfig()) // ages 10s, 1m, 5m; every 5s, 15s, 75s
	at := func(s int64) time.Time { return time.Unix(10_000+s, 0) }
	ms := func(s int64) int64 { return at(s).UnixMilli() }
	for _, tt := range []struct {
		name     string
		read     [passes]int64 // seconds
		now      int64
		window   time.Duration
		from, to int64 // 0, 0: nothing
		after    [passes]int64
	}{
		{"just begun", [passes]int64{0, 0, 0}, 14, time.Hour, 0, 0, [passes]int64{}},
		{"first reading", [passes]int64{0, 0, 0}, 15, time.Hour, 0, 15, [passes]int64{5, 0, 0}},
		{"what is young is read again", [passes]int64{5, 0, 0}, 20, time.Hour, 5, 20, [passes]int64{10, 0, 0}},
		{"second pass", [passes]int64{68, 0, 0}, 80, time.Hour, 0, 20, [passes]int64{68, 20, 0}},
		{"third pass", [passes]int64{390, 340, 0}, 401, time.Hour, 0, 101, [passes]int64{390, 340, 101}},
		{"history is read once", [passes]int64{-9000, -9000, -9000}, 0, time.Hour, -9000, -5400, [passes]int64{-5400, -5400, -5400}},
		{"its last part", [passes]int64{-600, -600, -600}, 0, time.Hour, -600, 0, [passes]int64{-10, -60, -300}},
		{"lag does not starve the last pass", [passes]int64{-100, -300, -700}, 0, time.Hour, -700, -300, [passes]int64{-100, -300, -300}},
		{"nor the last pass the first", [passes]int64{-100, -70, -500}, 0, time.Hour, -100, 0, [passes]int64{-10, -60, -500}},
	} {
		r := &reader{pace: p, window: tt.window}
		for i, s := range tt.read {
			r.at.Read[i] = ms(s)
		}
		from, to, wait := r.next(at(tt.now))
		if tt.from == 0 && tt.to == 0 {
			if wait <= 0 {
				t.Errorf("%s: reads %d to %d, want nothing", tt.name, from, to)
			}
			continue
		}
		if wait > 0 || from != ms(tt.from) || to != ms(tt.to) {
			t.Errorf("%s: wait %v, read %d to %d, want %d to %d", tt.name, wait, (from-ms(0))/1000, (to-ms(0))/1000, tt.from, tt.to)
			continue
		}
		r.at.done(p, from, to, at(tt.now))
		for i, s := range tt.after {
			if r.at.Read[i] != ms(s) {
				t.Errorf("%s: pass %d is at %d, want %d", tt.name, i, (r.at.Read[i]-ms(0))/1000, s)
			}
		}
	}
}

// TestPermissions holds the policy that users install to the requests that the
// source makes.
func TestPermissions(t *testing.T) {
	actions := map[string]string{}
	for _, name := range []string{"policy", "assume", "trust", "pod-identity-trust"} {
		data, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "audit", "eks", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Version   string
			Statement []struct{ Effect, Action, Resource any }
		}
		if err := json.Unmarshal(data, &doc); err != nil || doc.Version != "2012-10-17" {
			t.Errorf("%s.json: version %q, %v", name, doc.Version, err)
		}
		for _, s := range doc.Statement {
			actions[name] += fmt.Sprint(s.Effect, " ", s.Action, "; ")
		}
	}
	want := map[string]string{"policy": "Allow logs:FilterLogEvents; Allow logs:DescribeLogGroups; ", "assume": "Allow sts:AssumeRole; ", "trust": "Allow sts:AssumeRole; ", "pod-identity-trust": "Allow [sts:AssumeRole sts:TagSession]; "}
	if !maps.Equal(actions, want) {
		t.Errorf("the files allow %q, want %q", actions, want)
	}
}
