package enricher

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"picket/internal/bus"
	"picket/internal/service"
)

// Config is the enricher's configuration.
type Config struct {
	NATS  bus.Config          `yaml:"nats"`
	Log   service.LogConfig   `yaml:"log"`
	Admin service.AdminConfig `yaml:"admin"`

	Cluster    string           `yaml:"cluster" doc:"Name of the cluster whose Kubernetes API this enricher reads, as its sensors have it. Events of other clusters are passed on without Kubernetes metadata."`
	Kubernetes KubernetesConfig `yaml:"kubernetes"`
}

// KubernetesConfig is the part about the cluster's API.
type KubernetesConfig struct {
	Enabled    bool   `yaml:"enabled" doc:"Join events with metadata from the Kubernetes API. Off: events are passed on, those from pods marked unresolved."`
	Kubeconfig string `yaml:"kubeconfig" doc:"Kubeconfig file. Empty: the service account of the pod that the enricher runs in."`
	Context    string `yaml:"context" doc:"Context of the kubeconfig file. Empty: its current context."`

	SyncTimeout time.Duration `yaml:"sync_timeout" doc:"How long a start waits for the metadata to be complete before events are passed on without, 0 to 10m."`
	DeletedKept time.Duration `yaml:"deleted_kept" doc:"How long deleted pods (and their owners and addresses) stay known, 0 to 24h."`
	DeletedMax  int           `yaml:"deleted_max" doc:"How many deleted objects stay known at most, 1 to 1000000; the oldest go first."`

	Labels              []string `yaml:"labels" doc:"Labels of pods that their events carry, by key; one that ends in * stands for all that begin so. [] leaves labels out."`
	Annotations         []string `yaml:"annotations" doc:"Annotations of pods that their events carry, in the same way."`
	NamespaceLabels     []string `yaml:"namespace_labels" doc:"Labels of namespaces that the events of their pods carry, in the same way."`
	IdentityAnnotations []string `yaml:"identity_annotations" doc:"Annotations of service accounts that name the cloud identity they stand for, by key; the first that is there counts."`

	WaitForPod time.Duration `yaml:"wait_for_pod" doc:"How long a batch waits for a pod that the API has not shown yet, 0 to 10s. Only its own node and class wait with it."`
	HeldMax    int           `yaml:"held_max" doc:"Batches in hand above which none waits, 1 to 10000. NATS gives out 256 at most (max_ack_pending)."`
	HeldBytes  int64         `yaml:"held_bytes" doc:"Bytes in hand above which no batch waits, at least 1 MiB."`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		NATS: bus.DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin(),
		Cluster: "default",
		Kubernetes: KubernetesConfig{
			SyncTimeout: 30 * time.Second, DeletedKept: 10 * time.Minute, DeletedMax: 20000,
			Labels: []string{"*"}, Annotations: []string{}, NamespaceLabels: []string{},
			IdentityAnnotations: []string{"eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account", "azure.workload.identity/client-id"},
			WaitForPod:          2 * time.Second, HeldMax: 240, HeldBytes: 32 << 20,
		},
	}
}

// Validate checks the configuration; messages name the YAML key.
func (c Config) Validate() error {
	errs := []error{c.NATS.Validate(), c.Log.Validate(), c.Admin.Validate()}
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Cluster == "" {
		bad("cluster is empty: name the cluster as its sensors do")
	}
	k := c.Kubernetes
	if k.Kubeconfig == "" && k.Context != "" {
		bad("kubernetes.context is %q, but kubernetes.kubeconfig names no file to find it in", k.Context)
	}
	duration := func(key string, d, most time.Duration) {
		if d < 0 || d > most {
			bad("kubernetes.%s is %v: use 0 to %v", key, d, most)
		}
	}
	duration("sync_timeout", k.SyncTimeout, 10*time.Minute)
	duration("deleted_kept", k.DeletedKept, 24*time.Hour)
	duration("wait_for_pod", k.WaitForPod, 10*time.Second)
	for key, list := range map[string][]string{"labels": k.Labels, "annotations": k.Annotations, "namespace_labels": k.NamespaceLabels, "identity_annotations": k.IdentityAnnotations} {
		if len(list) > maxLabels {
			bad("kubernetes.%s has %d keys: use at most %d", key, len(list), maxLabels)
		}
		for _, l := range list {
			if prefix, star := strings.CutSuffix(l, "*"); l == "" || strings.Contains(prefix, "*") || star && key == "identity_annotations" {
				bad("kubernetes.%s: %q is no key; * stands at the end alone, and in identity_annotations nowhere", key, l)
			}
		}
	}
	if k.DeletedMax < 1 || k.DeletedMax > 1e6 {
		bad("kubernetes.deleted_max is %d: use 1 to 1000000", k.DeletedMax)
	}
	if k.HeldMax < 1 || k.HeldMax > 10000 {
		bad("kubernetes.held_max is %d: use 1 to 10000", k.HeldMax)
	}
	if k.HeldBytes < 1<<20 {
		bad("kubernetes.held_bytes is %d: use at least %d (1 MiB)", k.HeldBytes, 1<<20)
	}
	return errors.Join(errs...)
}
