# Picket. `make help` lists the targets.
SHELL := /bin/bash
.DELETE_ON_ERROR:

export GOTOOLCHAIN := local
GO        ?= go
GOBUILD   := CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath
COMMANDS  := $(notdir $(wildcard cmd/*))
CLANG     ?= clang-19
FUZZTIME  ?= 10s
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)

##@ Start here

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*##/ {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps build ## Fetch, build, start everything, simulate attacks, show the alerts, check that all parts agree, stop
	@bin/picket demo

.PHONY: test
test: deps deps-test build lint check-generated ## What CI runs beside make e2e: build, lint, generated files, all tests, race tests
	@if [ "$$(id -u)" != 0 ]; then echo "=== NOT ROOT: tests of the live kernel are left out; run as root for all of them ==="; fi
	@# Through report, because go test says nothing of what passing packages left out.
	@# make e2e has the machine to itself.
	set -o pipefail; $(GO) test -json -timeout 20m $$($(GO) list ./... | grep -v '^picket/test/e2e/kube$$') | $(GO) run ./test/report
	set -o pipefail; $(GO) test -json -race -timeout 20m $(RACE) | $(GO) run ./test/report
	@echo "make test: all passed"

##@ Build

.PHONY: build
build: ## Build all commands into bin/
	@mkdir -p bin
	$(GOBUILD) -ldflags "-X main.version=$(VERSION)" -o bin/ ./cmd/...

.PHONY: deps
deps: ## Install what building and running need: Go modules, the ClickHouse library
	@scripts/install.sh run
	@scripts/fetch-chdb.sh

.PHONY: deps-test
deps-test: ## Install what tests and generating need: gcc, clang, runc
	@scripts/install.sh test

.PHONY: generate
generate: ## Compile the eBPF programs and write reference pages (needs clang)
	$(GO) generate ./bpf
	$(GO) run ./internal/docsgen

.PHONY: check-generated
check-generated: ## Fail if a generated file is not what its source gives
	@scripts/check-generated.sh

##@ Test

# Packages where goroutines share state; the race detector needs cgo (gcc).
RACE := ./internal/batch ./internal/bus ./internal/outbox ./internal/rules ./services/enricher ./services/auditlog-ingest ./services/sensor/...

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@x="$$(gofmt -l $$(git ls-files '*.go'))"; [ -z "$$x" ] || { echo "not gofmt-clean: $$x"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# What CI gives the building of Kubernetes. Without it make e2e says what it left out.
KUBE_BUILD_LIMIT ?= 15m

.PHONY: kube
kube: ## Build the Kubernetes programs of the tests into the cache, once, and install what else a node needs (root; 6 minutes)
	@scripts/install.sh kube
	@$(GO) run ./test/node build

.PHONY: e2e
e2e: deps ## Try all of Picket on a real Kubernetes node (root; about 3 minutes, the first time 6 more)
	@test/e2e/kube/run.sh $(KUBE_BUILD_LIMIT)

.PHONY: vmtest
vmtest: ## Run the tests of ./bpf on Debian's kernels in QEMU; TESTS=pattern for some
	@scripts/install.sh vm
	@GO="$(GO)" test/vm/run.sh '$(TESTS)'

.PHONY: fuzz-short
fuzz-short: ## Run every fuzz target for FUZZTIME each
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: ## Run the benchmarks (benchstat-able) and the latency benchmark
	$(GO) test -run '^$$' -bench . -benchmem ./internal/... ./services/... ./bpf
	$(GO) run ./test/latency

.PHONY: bench-sensor
bench-sensor: ## What the sensor costs its node, with limits (root, quiet machine); ARGS='-check -rounds 3' for flags
	@mkdir -p bin
	$(GOBUILD) -ldflags "-X main.version=$(VERSION)" -o bin/ ./cmd/picket-sensor
	$(GO) run ./test/bench-sensor $(ARGS)

.PHONY: bench-audit
bench-audit: ## What the ingester takes from an audit log file to JetStream; ARGS='-check -events 400000' for flags
	@$(GO) run ./test/bench-audit $(ARGS)

.PHONY: bench-noise
bench-noise: build kube ## How many alerts ordinary work raises (root for its recording, made once); ARGS=-check for the limit
	@scripts/install.sh bench
	@$(GO) run ./test/bench-noise $(ARGS)

.PHONY: bench-detector
bench-detector: build kube ## What evaluating an event costs, over a million recorded ones; ARGS='-check -rounds 3' for flags
	@scripts/install.sh bench
	@$(GO) run ./test/bench-detector $(ARGS)

.PHONY: bench-enricher
bench-enricher: ## What a cluster of 10,000 pods costs the enricher, in memory and by event; ARGS='-check -rounds 3' for flags
	@$(GO) run ./test/bench-enricher $(ARGS)

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
