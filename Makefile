# What to type in this repository: `make help` lists it. Every target installs first what it needs and is missing.

GO ?= go

# A package build says `make VERSION=…`; a tree without git history is "dev".
VERSION = $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# The version comes from here, so go need not ask git, which refuses trees that belong to another user.
BUILD = $(GO) build -trimpath -buildvcs=false
STAMP = -X main.version=$(VERSION)

# Without this tag grpc brings net/trace, and with it html/template: a fifth of the agent.
AGENT_TAGS = grpcnotrace

# One modfile per tool: buf needs another protobuf than the product, and no linter belongs among our dependencies.
# Generating needs no C compiler.
BUF = CGO_ENABLED=0 $(GO) tool -modfile=tools/buf.mod buf
GOLANGCI = $(GO) tool -modfile=tools/golangci-lint.mod golangci-lint

# SQLite and PKCS#11 are C. Go would quietly turn cgo off where it finds no compiler, and build a server that cannot start.
export CGO_ENABLED = 1

.DEFAULT_GOAL := build
.PHONY: demo demo-tpm demo-replicas build run packages test-packages test-containers bench bench-step-ca fairness test test-race test-judges torture fuzz sizes lint fmt generate freeze-contract check-generated setup-build setup setup-tpm setup-test setup-judges clean help

demo: setup build ## set up what is missing, build, and run the whole story once
	deploy/demo.sh

demo-tpm: setup-tpm build ## enroll with an emulated TPM and no secret, replace the TPM, and rebind the identity
	deploy/demo-tpm.sh

build: setup-build ## bin/brevet, bin/brevet-agent, bin/brevet-bench and the examples
	$(BUILD) -ldflags '-s -w $(STAMP)' -o bin/brevet ./cmd/brevet
	$(BUILD) -ldflags '-s -w $(STAMP)' -o bin/brevet-bench ./cmd/brevet-bench
	CGO_ENABLED=0 $(BUILD) -tags $(AGENT_TAGS) -ldflags '-s -w $(STAMP)' -o bin/brevet-agent ./cmd/brevet-agent
ifneq ($(wildcard examples/*/main.go),)
	CGO_ENABLED=0 $(BUILD) -o bin/ ./examples/...
endif

demo-replicas: setup-test build ## two servers on PostgreSQL behind HAProxy, one of which is killed
	deploy/demo-replicas.sh

run: setup build ## the embedded CA of the demo, kept and left running
	bin/brevet dev

packages: build ## dist/*.deb: the server, and the agent
	VERSION='$(VERSION)' deploy/packages.sh

test-packages: setup-test packages ## as root: install the packages in a copy of this system, under a systemd of its own
	deploy/packages-test.sh

test-containers: build ## as root, with buildah and debootstrap: build both images from a Debian made here, and start them
	deploy/container/check.sh

bench: setup-test build ## what the token signs, and a server issues, revokes and answers, on this machine: for minutes, best with nothing else running
	bin/brevet-bench hsm
	bin/brevet-bench issue --callers 1
	bin/brevet-bench issue --callers 64
	bin/brevet-bench enroll
	bin/brevet-bench est
	bin/brevet-bench acme --duration 18s --accounts 100000
	bin/brevet-bench revoke
	bin/brevet-bench crl
	bin/brevet-bench ocsp

bench-step-ca: setup-test build ## step-ca beside Brevet, certificates a second and latencies: the first run builds step-ca, for minutes
	deploy/bench-step-ca.sh

fairness: setup-test ## what a client that makes ten times its calls does to the others' latency: for minutes, best with nothing else running
	$(GO) test -run '^$$' -bench BesideAFlood -benchtime 1x ./server

test: setup-test ## every test
	$(GO) test ./...

test-race: setup-test ## every test, under the race detector
	$(GO) test -race ./...

# Programs that no Debian package has, or only an old version; deploy/setup.sh keeps them here.
JUDGES = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/brevet/judges

test-judges: export PATH := $(JUDGES)/bin:$(JUDGES)/node_modules/.bin:$(PATH)
test-judges: export NODE_PATH = $(JUDGES)/acme-client/node_modules
test-judges: setup-judges ## clients that take more to install: Deno with our certificates, strongSwan and Bouncy Castle with EST, certbot and others with ACME
	$(GO) test -count=1 -tags judges -run '^TestDeno' ./ca
	$(GO) test -count=1 -tags judges -run '^TestESTWith' ./server
	$(GO) test -count=1 -tags judges -parallel 8 -run '^TestJudges$$' ./server/acme
	$(GO) test -count=1 -tags judges -run '^TestTour$$' ./cmd/brevet

# How long each torture goes on, such as 1m or 8h, and the seed that a failed one printed; 0 draws a new one.
TORTURE ?= 5m
SEED ?= 0

torture: setup-test ## kills, power cuts and histories of real servers, alone and several on PostgreSQL, TORTURE=5m of each, SEED=… to draw the same again
	$(GO) test -count=1 -timeout 0 -parallel 4 -v ./torture -torture.duration=$(TORTURE) -torture.seed=$(SEED)

# How long each target runs, such as 30s or 10m.
FUZZTIME ?= 1m

fuzz: setup-test ## every fuzz target in turn, FUZZTIME=1m each; what they find becomes a test
	deploy/fuzz.sh $(FUZZTIME)

sizes: setup build ## what the agent costs a device: binaries, memory, and which packages take the most
	AGENT_TAGS=$(AGENT_TAGS) deploy/sizes.sh

lint: setup-build ## go vet, golangci-lint, buf lint and buf breaking; the first run builds the linters, for minutes
	$(GO) vet ./...
	$(GOLANGCI) run ./...
	$(BUF) lint
	$(BUF) format --diff --exit-code
	$(BUF) breaking proto --against $(CONTRACT)

fmt: ## format Go and proto files in place
	gofmt -l -w .
	$(BUF) format --write

# The wire contract as clients have it. Only additions pass against it, so it is made anew only after a change that adds.
CONTRACT = proto/brevet/v1/v1.binpb

freeze-contract: setup-build ## take proto/ as it is now for the contract that make lint compares later changes with
	$(BUF) build proto --exclude-source-info -o $(CONTRACT)

# One package after the other: both write into the same page.
generate: setup-build ## make proto/**/*.pb.go and the references in docs/ again from what they are made of
	$(BUF) generate
	$(GO) test -p 1 -count 1 -run '^TestReferenceIsCurrent$$' ./internal/cli/node ./internal/cli/agent -update

# docs/configuration.md is checked by the tests. A copy without the generated files, generated anew, has to equal the original: that finds stale files, and leftover ones.
check-generated: ## fail when generated code or go.mod is not current
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	cp -R proto "$$tmp" && find "$$tmp" -name '*.pb.go' -delete && \
	$(BUF) generate --output "$$tmp" && \
	{ diff -ru proto "$$tmp/proto" || { echo 'check-generated: run make generate and commit what it changes' >&2; exit 1; }; }
	@$(GO) mod tidy -diff || { echo 'check-generated: run go mod tidy and commit what it changes' >&2; exit 1; }

setup-build:
	@deploy/setup.sh --build

setup: ## install what building and running need and is missing
	@deploy/setup.sh

setup-tpm:
	@deploy/setup.sh --tpm

setup-test:
	@deploy/setup.sh --test

setup-judges:
	@deploy/setup.sh --judges

clean: ## remove what was built
	rm -rf bin dist coverage.*

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
