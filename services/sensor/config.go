package sensor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"picket/internal/bus"
	"picket/internal/service"
	"picket/schemas"
	"picket/services/sensor/redact"
)

// Config is the sensor's configuration.
type Config struct {
	NATS  bus.Config          `yaml:"nats"`
	Log   service.LogConfig   `yaml:"log"`
	Admin service.AdminConfig `yaml:"admin"`

	Cluster string `yaml:"cluster" doc:"Name of the cluster; the same in every sensor and in the source of its audit log."`
	Node    string `yaml:"node" doc:"Name of the node as Kubernetes knows it. Empty: the host name."`

	StateDir   string `yaml:"state_dir" doc:"Folder for the spool: batches that NATS has not acknowledged yet. One sensor only."`
	SpoolBytes int64  `yaml:"spool_bytes" doc:"Bound of the spool, bytes, at least 1 MiB. When it is full new events are dropped and counted (spool_full)."`

	Kernel KernelConfig `yaml:"kernel"`
	Redact RedactConfig `yaml:"redact"`

	DropCapabilities bool `yaml:"drop_capabilities" doc:"Once the programs are attached give up, for good, every capability but CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE (docs/sensor.md says what for)."`

	FlushInterval time.Duration `yaml:"flush_interval" doc:"Longest time an event waits for others to share its batch, 1ms to 1s."`
}

// KernelConfig is the part about the eBPF programs.
type KernelConfig struct {
	Instance     string         `yaml:"instance" doc:"Name of this sensor's pinned programs; one sensor per node needs no other than the default."`
	BPFFS        string         `yaml:"bpffs" doc:"Where the BPF file system is, or is to be mounted."`
	ProcessRing  int            `yaml:"process_ring_bytes" doc:"Size of the ring buffer of process events, a power of two."`
	FileRing     int            `yaml:"file_ring_bytes" doc:"Size of the ring buffer of file events, a power of two."`
	NetworkRing  int            `yaml:"network_ring_bytes" doc:"Size of the ring buffer of network events, a power of two."`
	KernelRing   int            `yaml:"kernel_ring_bytes" doc:"Size of the ring buffer of events of class kernel, a power of two."`
	DNSRing      int            `yaml:"dns_ring_bytes" doc:"Size of the ring buffer of DNS messages, a power of two."`
	DNS          bool           `yaml:"dns" doc:"Report DNS questions and answers, and name the peers of connections by them. The programs for it run for every packet that a socket of the node sends or receives, and cost about 50 ns where it is not for port 53; they need CAP_NET_ADMIN to be attached."`
	Ignore       schemas.Ignore `yaml:"ignore"`
	WatchedPaths []string       `yaml:"watched_paths" doc:"Path prefixes whose files are also reported when opened for reading only. Files opened for writing or created are always reported."`
	Environment  []string       `yaml:"environment" doc:"Names of environment variables that an exec event has (the first 8 KiB of the environment are looked through). [] keeps none and saves the reading."`
	Unwanted     []string       `yaml:"unwanted_calls" doc:"System calls that are no events, by the names of evt.type; close is the end of TCP connections. They cost next to nothing then. The default leaves close out, which doubles the events of a node that makes many connections; set [] to have bytes and duration of each. Execs, forks and exits cannot be left out."`
	Share        uint64         `yaml:"container_share" doc:"Events of files, and of the network, that one container (or the host outside of them) may add in 134 ms to a ring that is more than three quarters full, so that it does not blind the node to the others. What is left out is counted (rate_limited) and reported for the container. 0: no limit."`
	KeepOnStop   bool           `yaml:"keep_on_stop" doc:"On a clean stop leave the programs running for the next start, so that an upgrade misses nothing. A crash always leaves them."`
}

// RedactConfig is the part about secrets in command lines.
type RedactConfig struct {
	Enabled bool     `yaml:"enabled" doc:"Replace secrets in arguments before they leave the node (docs/sensor.md lists what)."`
	Words   []string `yaml:"words" doc:"Parts of a key's name that mark its value as secret."`
}

// DefaultWatchedPaths are files worth knowing who reads them: credentials,
// keys, tokens, and the sockets of container runtimes.
func DefaultWatchedPaths() []string {
	return []string{
		"/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/pam.d/", "/etc/security/",
		"/root/.ssh/", "/etc/ssh/ssh_host_", "/root/.aws/", "/root/.kube/", "/root/.docker/", "/root/.config/gcloud/",
		"/var/run/secrets/", "/run/secrets/", "/etc/kubernetes/", "/var/lib/kubelet/pki/",
		"/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock",
		"/root/.bash_history", "/dev/mem", "/dev/kmem", "/proc/kcore", "/boot/",
	}
}

// DefaultEnvironment are variables that change what a program runs or whom it
// talks to, and those that tell where a login came from.
func DefaultEnvironment() []string {
	return []string{
		"LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GLIBC_TUNABLES", "BASH_ENV", "PROMPT_COMMAND", "HISTFILE",
		"PYTHONPATH", "PYTHONSTARTUP", "PERL5OPT", "RUBYOPT", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "GIT_SSH_COMMAND",
		"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
		"SSH_CONNECTION", "SUDO_USER",
	}
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	return Config{
		NATS: bus.DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin(),
		Cluster: "default", Node: host,
		StateDir: "/var/lib/picket/sensor", SpoolBytes: 1 << 30,
		Kernel: KernelConfig{Instance: "default", BPFFS: "/sys/fs/bpf", ProcessRing: 4 << 20, FileRing: 8 << 20, NetworkRing: 2 << 20, KernelRing: 1 << 20, DNSRing: 1 << 20, DNS: true,
			WatchedPaths: DefaultWatchedPaths(), Unwanted: []string{"close"}, Environment: DefaultEnvironment(), Share: 2000},
		Redact:           RedactConfig{Enabled: true, Words: redact.DefaultWords()},
		DropCapabilities: true,
		FlushInterval:    50 * time.Millisecond,
	}
}

var instanceName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Validate checks the configuration; messages name the YAML key.
func (c Config) Validate() error {
	errs := []error{c.NATS.Validate(), c.Log.Validate(), c.Admin.Validate()}
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Cluster == "" {
		bad("cluster is empty: name the cluster")
	}
	if c.Node == "" {
		bad("node is empty and the host has no name: name the node")
	}
	if c.StateDir == "" {
		bad("state_dir is empty: give a folder for the spool")
	}
	if c.SpoolBytes < 1<<20 {
		bad("spool_bytes is %d: use at least %d (1 MiB)", c.SpoolBytes, 1<<20)
	}
	if c.FlushInterval < time.Millisecond || c.FlushInterval > time.Second {
		bad("flush_interval is %v: use 1ms to 1s", c.FlushInterval)
	}
	if err := c.Kernel.Ignore.Validate(); err != nil {
		bad("kernel.ignore.%w", err)
	}
	for _, p := range c.Kernel.WatchedPaths {
		if !strings.HasPrefix(p, "/") || len(p) > 256 {
			bad("kernel.watched_paths: %q is not an absolute path of at most 256 bytes", p)
		}
	}
	if !filepath.IsAbs(c.Kernel.BPFFS) {
		bad("kernel.bpffs is %q: use an absolute path", c.Kernel.BPFFS)
	}
	// Package bpf checks these too, but it does not know the keys.
	if !instanceName.MatchString(c.Kernel.Instance) {
		bad("kernel.instance is %q: use 1 to 64 letters, digits, '-' and '_'", c.Kernel.Instance)
	}
	for _, r := range []struct {
		key  string
		size int
	}{{"process", c.Kernel.ProcessRing}, {"file", c.Kernel.FileRing}, {"network", c.Kernel.NetworkRing}, {"kernel", c.Kernel.KernelRing}, {"dns", c.Kernel.DNSRing}} {
		if r.size < 4096 || r.size > 1<<30 || r.size&(r.size-1) != 0 {
			bad("kernel.%s_ring_bytes is %d: use a power of two from 4096 to %d", r.key, r.size, 1<<30)
		}
	}
	return errors.Join(errs...)
}
