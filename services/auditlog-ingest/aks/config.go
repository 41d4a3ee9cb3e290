package aks

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"picket/services/auditlog-ingest/source"
)

// Config is the `aks` part of the configuration. The lists can only be set in
// the file.
type Config struct {
	EventHubs []EventHubConfig `yaml:"event_hubs" doc:"Event hubs that diagnostic settings of AKS clusters write to, each with name, namespace and event_hub, or connection_string_file; see audit-aks.md. Empty: none."`
	Storage   []StorageConfig  `yaml:"storage" doc:"Storage accounts that diagnostic settings of AKS clusters write to, each with name and url; see audit-aks.md. Empty: none."`
	Clusters  []ClusterConfig  `yaml:"clusters" doc:"Which cluster a record is of: resource_id as Azure names the cluster, in any case, and name as in its sensors. Records of other resources are left out and counted. Empty: all records are of the ingester's cluster."`
	Start     source.Start     `yaml:"start" doc:"Where a partition or a container without a checkpoint begins: now, beginning, or a time in RFC 3339."`
	PollEvery time.Duration    `yaml:"poll_every" doc:"How often a storage account is asked for what was appended, 1s to 1h. Azure appends about once a minute."`
	Late      time.Duration    `yaml:"late" doc:"How long after its hour a blob may still grow, 10m to 48h. What is appended later is not read."`
}

// EventHubConfig is one event hub.
type EventHubConfig struct {
	Name                 string `yaml:"name" doc:"Name of this source; with the partition's number it becomes the column node. Unique among event hubs and storage accounts."`
	Namespace            string `yaml:"namespace" doc:"Host name of the namespace, such as picket.servicebus.windows.net, opened with Entra ID (workload identity, managed identity, environment)."`
	EventHub             string `yaml:"event_hub" doc:"Name of the event hub in the namespace. Not with a connection string that has EntityPath."`
	ConnectionStringFile string `yaml:"connection_string_file" doc:"File with a connection string that has the claim Listen, in place of namespace; read at each connection."`
	ConsumerGroup        string `yaml:"consumer_group" doc:"Consumer group that nothing but Picket uses. Empty: $Default."`
	Endpoint             string `yaml:"endpoint" doc:"Host, or host:port, to connect to in place of the namespace's own name, for a private endpoint."`
}

// StorageConfig is one storage account.
type StorageConfig struct {
	Name                 string   `yaml:"name" doc:"Name of this source; with the cluster's it becomes the column node. Unique among event hubs and storage accounts."`
	URL                  string   `yaml:"url" doc:"Address of the account's blobs, such as https://picket.blob.core.windows.net/ or that of a private endpoint, opened with Entra ID."`
	ConnectionStringFile string   `yaml:"connection_string_file" doc:"File with a connection string, in place of url; read again when Azure refuses what was in it."`
	Containers           []string `yaml:"containers" doc:"Containers to read. Empty: insights-logs-kube-audit and insights-logs-kube-audit-admin, those of them that are there."`
}

// ClusterConfig names one cluster.
type ClusterConfig struct {
	ResourceID string `yaml:"resource_id" doc:"/subscriptions/…/resourcegroups/…/providers/microsoft.containerservice/managedclusters/…"`
	Name       string `yaml:"name" doc:"Name of the cluster, the same as in its sensors."`
}

// DefaultConfig returns the defaults: off.
func DefaultConfig() Config {
	return Config{Start: source.StartNow, PollEvery: 15 * time.Second, Late: 3 * time.Hour}
}

// Enabled reports whether there is anything to read.
func (c Config) Enabled() bool { return len(c.EventHubs)+len(c.Storage) > 0 }

// Bounds of the lists.
const (
	maxPlaces   = 64
	maxClusters = 4096
)

// Validate checks the part; messages name the YAML key.
func (c Config) Validate() error {
	if !c.Enabled() {
		return nil
	}
	if n := len(c.EventHubs) + len(c.Storage); n > maxPlaces {
		return fmt.Errorf("aks.event_hubs and aks.storage have %d entries: use at most %d", n, maxPlaces)
	}
	if len(c.Clusters) > maxClusters {
		return fmt.Errorf("aks.clusters has %d entries: use at most %d", len(c.Clusters), maxClusters)
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	names := map[string]string{}
	name := func(key, name string) {
		if err := source.ValidName(key+".name", name); err != nil {
			errs = append(errs, err)
		} else if len(name) > 32 {
			bad("%s.name is %q: use at most 32 characters", key, name)
		} else if other := names[name]; other != "" {
			bad("%s.name is %q, and %s has that name too: give each its own", key, name, other)
		}
		names[name] = key
	}
	for i, h := range c.EventHubs {
		key := fmt.Sprintf("aks.event_hubs[%d]", i)
		name(key, h.Name)
		switch {
		case (h.Namespace == "") == (h.ConnectionStringFile == ""):
			bad("%s: give either namespace or connection_string_file", key)
		case h.Namespace != "" && h.EventHub == "":
			bad("%s.event_hub is empty: give the name of the event hub", key)
		case strings.ContainsAny(h.Namespace, ":/ "):
			bad("%s.namespace is %q: give a host name, such as picket.servicebus.windows.net", key, h.Namespace)
		}
		if h.Endpoint != "" {
			host, port, err := net.SplitHostPort(h.Endpoint)
			if err != nil {
				host, port = h.Endpoint, "5671"
			}
			if host == "" || port == "" || strings.ContainsAny(host, ":/ ") && net.ParseIP(host) == nil {
				bad("%s.endpoint is %q: give a host or host:port", key, h.Endpoint)
			}
		}
	}
	for i, s := range c.Storage {
		key := fmt.Sprintf("aks.storage[%d]", i)
		name(key, s.Name)
		if (s.URL == "") == (s.ConnectionStringFile == "") {
			bad("%s: give either url or connection_string_file", key)
		} else if u, err := url.Parse(s.URL); s.URL != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "") {
			// Not with the URL in it: a signature may be.
			bad("%s.url: give an address such as https://picket.blob.core.windows.net/, without a query", key)
		}
		for _, container := range s.Containers {
			if len(container) < 3 || len(container) > 63 || strings.ContainsFunc(container, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '$' }) {
				bad("%s.containers has %q: give the name of a container, such as insights-logs-kube-audit", key, container)
			}
		}
	}
	ids := map[string]bool{}
	for i, k := range c.Clusters {
		key := fmt.Sprintf("aks.clusters[%d]", i)
		id := resourceKey(k.ResourceID)
		switch {
		case !strings.HasPrefix(id, "/subscriptions/") || !strings.Contains(id, "/managedclusters/"):
			bad("%s.resource_id is %q: give what az aks show --query id prints", key, k.ResourceID)
		case ids[id]:
			bad("%s.resource_id is %q, which stands there twice: a resource is one cluster", key, k.ResourceID)
		}
		ids[id] = true
		if err := source.ValidName(key+".name", k.Name); err != nil {
			errs = append(errs, err)
		}
	}
	if err := c.Start.Validate("aks.start"); err != nil {
		errs = append(errs, err)
	}
	if c.PollEvery < time.Second || c.PollEvery > time.Hour {
		bad("aks.poll_every is %s: use 1s to 1h", c.PollEvery)
	}
	if c.Late < 10*time.Minute || c.Late > 48*time.Hour {
		bad("aks.late is %s: use 10m to 48h", c.Late)
	}
	return errors.Join(errs...)
}

// resourceKey returns a resourceId as it is compared: Azure writes them in
// capitals at one place and not at another.
func resourceKey(id string) string { return "/" + strings.ToLower(strings.Trim(id, "/ ")) }
