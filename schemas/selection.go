package schemas

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Selection says what a sensor reports, beside what its configuration says. It
// is JSON in BucketControl under ControlKey; a sensor applies it while it runs.
type Selection struct {
	// Classes that are reported: names as of Class.String. Empty: all. Class
	// process always is, because every event names its process.
	Classes []string `json:"classes,omitempty"`
	// WatchedPaths are watched beside kernel.watched_paths. The detector writes
	// here, and in WantedCalls, what the loaded rules need; the rest is the
	// operator's.
	WatchedPaths []string `json:"watched_paths,omitempty"`
	// WantedCalls are reported although they are unwanted.
	WantedCalls []string `json:"wanted_calls,omitempty"`
	// UnwantedCalls are in place of kernel.unwanted_calls; null leaves those.
	UnwantedCalls *[]string `json:"unwanted_calls,omitempty"`
	// Ignore is beside kernel.ignore.
	Ignore Ignore `json:"ignore,omitzero"`
}

// Ignore names what a sensor does not report. It is left out in the kernel.
type Ignore struct {
	Containers []string `json:"containers,omitempty" yaml:"containers" doc:"Containers whose events are left out: KEY=VALUE of id, pod_uid, namespace, pod, name (of the container) and image (repository), several separated by blanks all of which must hold, as in namespace=kube-system name=kube-proxy. A value may end in *. Those by id and pod_uid are left out from their first process on, the others from their first event on, which tells their names."`
	Programs   []string `json:"programs,omitempty" yaml:"programs" doc:"Absolute paths of executables, as processes see them. Of a process that runs one its exec is reported and nothing after, of it and of all that descends from it. At most 256 of 255 bytes."`
	Peers      []string `json:"peers,omitempty" yaml:"peers" doc:"Networks (10.0.0.0/8, fd00::/8) or addresses, each with or without a port (10.0.0.7:9100, [fd00::7]:9100): connections to or from them, and datagrams to them, are not reported. Of networks that contain each other the smallest counts."`
}

// Validate checks everything that the sensor would refuse. Messages name the
// JSON key.
func (s Selection) Validate() error {
	var errs []error
	for _, name := range s.Classes {
		if c, err := ParseClass(name); err != nil || !slices.Contains(NodeClasses(), c) {
			errs = append(errs, fmt.Errorf("classes: %q is no class of a sensor's events (%v)", name, NodeClasses()))
		}
	}
	for _, p := range s.WatchedPaths {
		if !strings.HasPrefix(p, "/") || len(p) >= 256 {
			errs = append(errs, fmt.Errorf("watched_paths: %q is not an absolute path of at most 255 bytes", p))
		}
	}
	if err := s.Ignore.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("ignore.%w", err))
	}
	return errors.Join(errs...)
}

// Validate checks what is to be ignored. A message begins with the key.
func (i Ignore) Validate() error {
	for _, c := range i.Containers {
		if _, err := ParseContainerSelector(c); err != nil {
			return fmt.Errorf("containers: %w", err)
		}
	}
	for _, p := range i.Programs {
		if !strings.HasPrefix(p, "/") || len(p) >= 256 || strings.ContainsRune(p, 0) {
			return fmt.Errorf("programs: %q is not an absolute path of at most 255 bytes", p)
		}
	}
	for _, p := range i.Peers {
		if _, _, err := ParsePeer(p); err != nil {
			return fmt.Errorf("peers: %w", err)
		}
	}
	return nil
}

// ContainerSelector chooses containers by what is known of them.
type ContainerSelector map[string]string

// containerKeys are what a ContainerSelector may ask for.
var containerKeys = []string{"id", "pod_uid", "namespace", "pod", "name", "image"}

// ParseContainerSelector reads the form that Ignore.Containers has.
func ParseContainerSelector(text string) (ContainerSelector, error) {
	s := ContainerSelector{}
	parts := strings.Fields(text)
	if len(parts) == 0 {
		parts = []string{""}
	}
	for _, part := range parts {
		key, value, ok := strings.Cut(part, "=")
		switch _, again := s[key]; {
		case !ok || value == "" || !slices.Contains(containerKeys, key):
			return nil, fmt.Errorf("%q: use KEY=VALUE with one of the keys %s, several separated by blanks", text, strings.Join(containerKeys, ", "))
		case again:
			return nil, fmt.Errorf("%q names %s twice", text, key)
		case strings.Contains(strings.TrimSuffix(value, "*"), "*"):
			return nil, fmt.Errorf("%q: * stands at the end of a value only", text)
		case value == "*":
			return nil, fmt.Errorf("%q: a value of * alone would be every container", text)
		}
		s[key] = value
	}
	return s, nil
}

// Match reports whether a container is chosen: value returns what is known under
// a key, empty where that is nothing, which no value matches.
func (s ContainerSelector) Match(value func(key string) string) bool {
	for key, want := range s {
		have := value(key)
		if prefix, ok := strings.CutSuffix(want, "*"); ok {
			if have == "" || !strings.HasPrefix(have, prefix) {
				return false
			}
		} else if have != want {
			return false
		}
	}
	return len(s) > 0
}

// ParsePeer reads a network or address with or without a port, which is 0 then.
func ParsePeer(text string) (netip.Prefix, uint16, error) {
	bad := fmt.Errorf("%q: use a network or an address, with or without a port, as in 10.0.0.0/8, 10.0.0.7:9100, [fd00::7]:9100", text)
	port := uint64(0)
	network := text
	if host, p, ok := cutPort(text); ok {
		var err error
		if port, err = strconv.ParseUint(p, 10, 16); err != nil || port == 0 {
			return netip.Prefix{}, 0, bad
		}
		network = host
	}
	if prefix, err := netip.ParsePrefix(network); err == nil {
		return prefix.Masked(), uint16(port), nil
	}
	addr, err := netip.ParseAddr(network)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, 0, bad
	}
	addr = addr.Unmap()
	return netip.PrefixFrom(addr, addr.BitLen()), uint16(port), nil
}

// cutPort splits host:port and [host]:port; an IPv6 address without brackets has
// no port.
func cutPort(text string) (host, port string, ok bool) {
	if rest, is := strings.CutPrefix(text, "["); is {
		host, port, ok = strings.Cut(rest, "]:")
		return host, port, ok
	}
	if strings.Count(text, ":") != 1 {
		return "", "", false
	}
	return strings.Cut(text, ":")
}
