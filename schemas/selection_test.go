package schemas

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParsePeer(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8 0", "10.1.2.3/8": "10.0.0.0/8 0", "10.0.0.7": "10.0.0.7/32 0", "10.0.0.7:9100": "10.0.0.7/32 9100", "10.0.0.0/8:53": "10.0.0.0/8 53",
		"fd00::7": "fd00::7/128 0", "fd00::/8": "fd00::/8 0", "[fd00::7]:9100": "fd00::7/128 9100", "[fd00::/8]:9100": "fd00::/8 9100", "::ffff:10.0.0.7": "10.0.0.7/32 0",
		"": "", "example.com": "", "10.0.0.7:0": "", "10.0.0.7:65536": "", "10.0.0.7:": "", "[fd00::7]": "", "fe80::1%eth0": "", "10.0.0.0/33": "",
	} {
		got := ""
		if network, port, err := ParsePeer(text); err == nil {
			b, _ := json.Marshal(port)
			got = network.String() + " " + string(b)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestContainerSelector(t *testing.T) {
	known := map[string]string{"id": "abc", "pod_uid": "uid", "namespace": "kube-system", "pod": "kube-proxy-x7k2", "name": "kube-proxy", "image": "registry.example/kube-proxy"}
	for text, want := range map[string]bool{
		"id=abc": true, "id=ab": false, "id=ab*": true, "namespace=kube-system name=kube-proxy": true, "namespace=kube-system  name=other": false,
		"pod=kube-proxy-*": true, "image=registry.example/*": true, "name=*x": false,
	} {
		s, err := ParseContainerSelector(text)
		if err != nil {
			if text != "name=*x" {
				t.Errorf("%q: %v", text, err)
			}
			continue
		}
		if got := s.Match(func(key string) string { return known[key] }); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	s, _ := ParseContainerSelector("namespace=k*")
	if s.Match(func(string) string { return "" }) {
		t.Error("what is not known matches")
	}
	for _, bad := range []string{"", "abc", "id=", "label=x", "id=a id=b", "name=*", "id=a pod"} {
		if _, err := ParseContainerSelector(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestSelectionValidate(t *testing.T) {
	for text, want := range map[string]string{
		`{}`: "",
		`{"classes":["process","network"],"watched_paths":["/etc"],"unwanted_calls":[],"ignore":{"programs":["/usr/bin/node_exporter"],"peers":["10.0.0.0/8"],"containers":["namespace=monitoring"]}}`: "",
		`{"classes":["audit"]}`:             `classes: "audit" is no class of a sensor's events`,
		`{"watched_paths":["etc"]}`:         `watched_paths: "etc" is not an absolute path`,
		`{"ignore":{"programs":["x"]}}`:     `ignore.programs: "x" is not an absolute path`,
		`{"ignore":{"peers":["x"]}}`:        `ignore.peers: "x": use a network or an address`,
		`{"ignore":{"containers":["x=y"]}}`: `ignore.containers: "x=y": use KEY=VALUE`,
	} {
		var s Selection
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		err := s.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
