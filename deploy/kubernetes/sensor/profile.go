// Package sensor holds what runs the sensor on Kubernetes. Its test runs the
// sensor with just the rights that daemonset.yaml gives it.
package sensor

import _ "embed"

// Seccomp is the sensor's seccomp profile, an OCI runtime's `linux.seccomp` in
// JSON: what is not listed fails with EPERM.
//
//go:embed seccomp.json
var Seccomp []byte
