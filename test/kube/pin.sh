#!/usr/bin/env bash
# Writes go.mod and go.sum for a version of Kubernetes: test/kube/pin.sh v1.34.4
set -euo pipefail
cd "$(dirname "$0")"
version=${1:?"usage: $0 v1.X.Y"}
staging=${version/v1./v0.} # each staging module is published as v0.X.Y too
upstream=$(cd / && GOFLAGS=-mod=mod go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
{
	cat <<'MOD'
// Builds the Kubernetes programs that test/cluster starts. The version is that of k8s.io/kubernetes below; all else
// is what that version's own go.mod asks for, with every staging module as it was published with it. pin.sh writes
// this file; `go mod tidy` does not work here.
module picket/test/kube

MOD
	sed -e '/^module /d' -e '/^\/\//d' -e "s#\(k8s.io/[a-z0-9-]*\) v0\.0\.0\( //.*\)\?\$#\1 $staging#" \
		-e "s#=> \./staging/src/\(k8s.io/[a-z0-9-]*\)#=> \1 $staging#" "$upstream"
	printf '\nrequire k8s.io/kubernetes %s\n\ntool (\n\tpicket/test/kube/pause\n' "$version"
	printf '\tk8s.io/kubernetes/cmd/%s\n' kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet
	printf ')\n'
} | cat -s >go.mod
: >go.sum
GOFLAGS=-mod=mod go list -deps tool >/dev/null # fills go.sum
