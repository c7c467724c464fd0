# Two commands matter: `make demo` shows the main job, `make test` runs everything. Both install what they need. A line `##` says in `make help` what the
# target below it does.
.PHONY: help demo check test test-kernel images e2e e2e-absence soak test-features test-kernels test-foreign-rules fuzz bench bench-failover bench-scale package msrv powerset deny coverage setup

## This list
help:
	@awk '/^## / { what = substr($$0, 4); next } /^[a-z0-9-]+:/ && what { sub(/:.*/, ""); printf "  %-14s %s\n", $$0, what } { what = "" }' $(MAKEFILE_LIST)

# One selection of packages for all targets, so that nothing is built twice.
BUILD = cargo build --workspace --bins

## The main job in network namespaces, no cluster needed. KEEP=1: it stays and says how to look around; BACKEND=nftables|netfilter
demo: setup
	$(BUILD)
	$(or $(CARGO_TARGET_DIR),target)/debug/demo $(if $(KEEP),--keep) --backend $(or $(BACKEND),auto)

## Format, lints and every test that touches no kernel: needs no root
check:
	./scripts/test format lints rootless

## Drivers and data path in network namespaces
test-kernel: setup
	$(BUILD)
	./scripts/test rooted

# The programs of Kubernetes, which take minutes to build once, are built beside the rest; their tests wait for them, and say what is wrong with them.
# Every part runs to its end, and one summary tells what failed.
## Everything that continuous integration runs
test: setup
	nice ./scripts/kube-assets nodes >/dev/null 2>&1 &
	./scripts/test

# Archives of all images: images/NAME.tar. With PROGRAMS=target/debug from programs as they were built for tests, else from release builds.
## Archives of all images, for ctr, docker, kind and k3s
images: setup
	./scripts/images $(if $(PROGRAMS),--programs $(PROGRAMS)) $(IMAGES)

# A real cluster with kubelets, containerd and a CNI, and the product in it. E2E: a part of a test's name, or options such as --variant legacy. KEEP=1: no
# tests, the cluster stays and says how to look around.
## The chart on a real cluster of kubelets in namespaces. KEEP=1: no tests, the cluster stays
e2e: setup
	$(BUILD)
	$(if $(KEEP),$(or $(CARGO_TARGET_DIR),target)/debug/e2e up,cargo test --workspace --test e2e --) $(E2E)

# The API server goes away on that cluster, in different ways by turns: some three minutes each time. WRITE=docs/failover.md: into that page.
## The API server of that cluster goes away, again and again. ROUNDS=12
e2e-absence: setup
	$(BUILD)
	cargo test --workspace --test e2e -- --absences $(or $(ROUNDS),12) $(if $(WRITE),--write $(abspath $(WRITE)))

## The agent without each of its parts
test-features: setup
	./scripts/test features

# Random events until something is wrong: docs/soak.md.
## Random events until something is wrong. SOAK="--seed 7 --events 1000 --backend netfilter"
soak: setup
	$(BUILD)
	$(or $(CARGO_TARGET_DIR),target)/debug/soak $(SOAK)

# `make test` feeds each target for ten seconds. This goes on from what earlier calls of it found.
## Random bytes for all readers of what comes from outside. TARGET=nft_table SECONDS=600
fuzz: setup
	./scripts/fuzz --seconds $(or $(SECONDS),300) $(TARGET)

## Under Debian's kernels 5.10, 6.1 and 6.12, in an emulator: hours
test-kernels: setup
	./scripts/test-kernels --write

# All combinations of foreign rules, where `make test` has a choice. A quarter of an hour.
## All combinations of foreign rules
test-foreign-rules: setup
	$(BUILD)
	cargo test --package egressgateway-testkit --test datapath_foreign_rules -- --nocapture --test-threads 1

## Benchmarks, as ratios within one run
bench: setup
	cargo bench --package egressgateway-benchmarks

## How long gateways take to fail over, into docs/failover.md
bench-failover: setup
	$(BUILD)
	$(or $(CARGO_TARGET_DIR),target)/debug/failover --write docs/failover.md $(FAILOVER)

# Without debug information in the way, as an image has the daemons: their size and processor time are of interest.
## What a thousand nodes cost, into docs/scale.md
bench-scale: setup
	./scripts/kube-assets >/dev/null
	$(BUILD) --release
	$(or $(CARGO_TARGET_DIR),target)/release/scale --write docs/scale.md $(SCALE)

## The packages, complete and usable outside
package: setup
	./scripts/test package

## The oldest Rust that the packages promise
msrv:
	./scripts/cargo-tool msrv

## Every feature of the libraries alone
powerset:
	./scripts/cargo-tool powerset

# What is known of faults comes from the network; the rest does not.
## Licences, sources and known faults of dependencies. CHECKS="bans licenses sources"
deny:
	./scripts/cargo-tool deny $(CHECKS)

## Which lines the tests run, as target/coverage/index.html
coverage:
	./scripts/cargo-tool coverage

## Installs Debian packages that are missing
setup:
	@./scripts/setup
