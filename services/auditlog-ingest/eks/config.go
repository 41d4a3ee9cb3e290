package eks

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"time"

	"picket/services/auditlog-ingest/source"
)

// MaxClusters bounds Config.Clusters.
const MaxClusters = 1000

// Config is the `eks` part of the configuration. What is said for all clusters
// holds for each that says nothing else.
type Config struct {
	Region            string        `yaml:"region" doc:"AWS region of clusters that name none."`
	RoleARN           string        `yaml:"role_arn" doc:"Role to assume for clusters that name none. Empty: the ingester's own credentials."`
	ExternalID        string        `yaml:"external_id" doc:"External id that the role's trust policy asks for, for clusters that name none."`
	Endpoint          string        `yaml:"endpoint" doc:"URL of CloudWatch Logs for clusters that name none, such as that of a VPC endpoint. Empty: the region's own."`
	Start             source.Start  `yaml:"start" doc:"Where to begin in a log group without a checkpoint: now, beginning, or a time such as 2026-01-31T00:00:00Z."`
	Poll              time.Duration `yaml:"poll" doc:"How often a log group is asked for new events, 1s to 5m."`
	Overlap           time.Duration `yaml:"overlap" doc:"How late CloudWatch Logs may show an event and it is still taken, 10s to 8m: every stretch of time is read again when it is this old."`
	RequestsPerSecond float64       `yaml:"requests_per_second" doc:"Most requests a second that this ingester makes in one account and region, 0.1 to 100. The account's quota is 5 in most regions, for all its users together."`
	Clusters          []Cluster     `yaml:"clusters" doc:"Clusters to read, at most 1000, each with: name, eks_name, log_group, region, role_arn, external_id, endpoint."`
}

// Cluster is one cluster whose log group is read.
type Cluster struct {
	Name       string `yaml:"name" doc:"Name of the cluster, the same as in its sensors. The source is eks-<name>."`
	EKSName    string `yaml:"eks_name" doc:"Name of the cluster in EKS. Empty: name."`
	LogGroup   string `yaml:"log_group" doc:"Log group. Empty: /aws/eks/<eks_name>/cluster."`
	Region     string `yaml:"region" doc:"AWS region. Empty: eks.region."`
	RoleARN    string `yaml:"role_arn" doc:"Role to assume, of the account that the cluster is in. Empty: eks.role_arn."`
	ExternalID string `yaml:"external_id" doc:"External id for role_arn. Empty: eks.external_id."`
	Endpoint   string `yaml:"endpoint" doc:"URL of CloudWatch Logs. Empty: eks.endpoint."`
}

// DefaultConfig returns the defaults: off, since there are no clusters.
func DefaultConfig() Config {
	return Config{Start: source.StartNow, Poll: 5 * time.Second, Overlap: 5 * time.Minute, RequestsPerSecond: 4}
}

var (
	// Formats: the CloudWatch Logs API (logGroupName), and the IAM API (RoleArn).
	logGroupName = regexp.MustCompile(`^[.\-_/#A-Za-z0-9]{1,512}$`)
	roleARN      = regexp.MustCompile(`^arn:[a-z0-9-]+:iam::([0-9]{12}):role/[\x21-\x7e]{1,512}$`)
	regionName   = regexp.MustCompile(`^[a-z]{2,}(-[a-z0-9]+)+$`)
)

// filled returns a cluster with the values that hold for it.
func (c Config) filled(k Cluster) Cluster {
	or := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	or(&k.EKSName, k.Name)
	or(&k.LogGroup, "/aws/eks/"+k.EKSName+"/cluster")
	or(&k.Region, c.Region)
	or(&k.RoleARN, c.RoleARN)
	if k.RoleARN != "" {
		or(&k.ExternalID, c.ExternalID)
	}
	or(&k.Endpoint, c.Endpoint)
	return k
}

// Enabled reports whether there is anything to read.
func (c Config) Enabled() bool { return len(c.Clusters) > 0 }

// Validate checks the part; messages name the YAML key.
func (c Config) Validate() error {
	if !c.Enabled() {
		return nil
	}
	if len(c.Clusters) > MaxClusters {
		return fmt.Errorf("eks.clusters has %d entries: one ingester takes %d", len(c.Clusters), MaxClusters)
	}
	if c.Poll < time.Second || c.Poll > 5*time.Minute {
		return fmt.Errorf("eks.poll is %v: give 1s to 5m", c.Poll)
	}
	if c.Overlap < 10*time.Second || c.Overlap > 8*time.Minute {
		return fmt.Errorf("eks.overlap is %v: give 10s to 8m", c.Overlap)
	}
	if !(c.RequestsPerSecond >= 0.1 && c.RequestsPerSecond <= 100) {
		return fmt.Errorf("eks.requests_per_second is %v: give 0.1 to 100", c.RequestsPerSecond)
	}
	errs := []error{c.Start.Validate("eks.start")}
	names, groups := map[string]bool{}, map[string]string{}
	for i, k := range c.Clusters {
		key := fmt.Sprintf("eks.clusters[%d]", i)
		k = c.filled(k)
		if err := source.ValidName(key+".name", k.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		if len(k.Name) > 124 {
			errs = append(errs, fmt.Errorf("%s.name is %q: give at most 124 characters", key, k.Name))
		}
		if names[k.Name] {
			errs = append(errs, fmt.Errorf("%s.name is %q, as that of another cluster: names are unique", key, k.Name))
		}
		names[k.Name] = true
		if !regionName.MatchString(k.Region) {
			errs = append(errs, fmt.Errorf("%s.region is %q: give the cluster's region, such as eu-central-1, here or as eks.region", key, k.Region))
		}
		if !logGroupName.MatchString(k.LogGroup) {
			errs = append(errs, fmt.Errorf("%s.log_group is %q: give the name of a log group, such as /aws/eks/prod/cluster", key, k.LogGroup))
		}
		if k.RoleARN != "" && !roleARN.MatchString(k.RoleARN) {
			errs = append(errs, fmt.Errorf("%s.role_arn is %q: give the ARN of a role, such as arn:aws:iam::123456789012:role/picket-audit", key, k.RoleARN))
		}
		if k.ExternalID != "" && k.RoleARN == "" {
			errs = append(errs, fmt.Errorf("%s.external_id goes with role_arn: give that too", key))
		}
		if k.Endpoint != "" {
			if u, err := url.Parse(k.Endpoint); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
				errs = append(errs, fmt.Errorf("%s.endpoint is no URL of CloudWatch Logs: give one such as https://vpce-0123.logs.eu-central-1.vpce.amazonaws.com, without a user", key))
			}
		}
		place := k.Region + " " + k.account() + " " + k.Endpoint + " " + k.LogGroup
		if other, ok := groups[place]; ok {
			errs = append(errs, fmt.Errorf("%s.log_group: %s is read as cluster %s already", key, k.LogGroup, other))
		}
		groups[place] = k.Name
	}
	return errors.Join(errs...)
}

// account returns the account that the cluster's role belongs to; empty is
// that of the ingester's own credentials.
func (k Cluster) account() string {
	if m := roleARN.FindStringSubmatch(k.RoleARN); m != nil {
		return m[1]
	}
	return ""
}
