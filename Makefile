# Two commands matter: `make demo` shows the main job, `make test` runs everything. Both install what they need.
.PHONY: demo test images e2e e2e-absence soak test-features test-kernels test-worlds bench bench-failover bench-scale package setup

# One selection of packages for all targets, so that nothing is built twice.
BUILD = cargo build --workspace --bins

demo: setup
	$(BUILD)
	$(or $(CARGO_TARGET_DIR),target)/debug/demo $(if $(KEEP),--keep) --backend $(or $(BACKEND),auto)

# The programs of Kubernetes, which take minutes to build once, are built beside the rest; their tests wait for them, and say what is wrong with them.
# Every part runs to its end, and one summary tells what failed.
test: setup
	nice ./scripts/kube-assets >/dev/null 2>&1 &
	./scripts/test

# Archives of all images: images/NAME.tar. With PROGRAMS=target/debug from programs as they were built for tests, else from release builds.
images: setup
	./scripts/images $(if $(PROGRAMS),--programs $(PROGRAMS)) $(IMAGES)

# A real cluster with kubelets, containerd and a CNI, and the product in it. E2E: a part of a test's name, or options such as --variant legacy. KEEP=1: no
# tests, the cluster stays and says how to look around.
e2e: setup
	$(BUILD)
	$(if $(KEEP),$(or $(CARGO_TARGET_DIR),target)/debug/e2e up,cargo test --workspace --test e2e --) $(E2E)

# The API server goes away on that cluster, in different ways by turns: some three minutes each time. WRITE=docs/failover.md: into that page.
e2e-absence: setup
	$(BUILD)
	cargo test --workspace --test e2e -- --absences $(or $(ROUNDS),12) $(if $(WRITE),--write $(abspath $(WRITE)))

test-features: setup
	./scripts/test features

# Random events until something is wrong: docs/soak.md.
soak: setup
	$(BUILD)
	$(or $(CARGO_TARGET_DIR),target)/debug/soak $(SOAK)

test-kernels: setup
	./scripts/test-kernels --write

# Every world of foreign rules, where `make test` has a choice. A quarter of an hour.
test-worlds: setup
	$(BUILD)
	cargo test --package egressgateway-testkit --test datapath_worlds -- --nocapture --test-threads 1

bench: setup
	cargo bench --package egressgateway-benchmarks

bench-failover: setup
	$(BUILD)
	$(or $(CARGO_TARGET_DIR),target)/debug/failover --write docs/failover.md $(FAILOVER)

# Without debug information in the way, as an image has the daemons: their size and processor time are of interest.
bench-scale: setup
	./scripts/kube-assets >/dev/null
	$(BUILD) --release
	$(or $(CARGO_TARGET_DIR),target)/release/scale --write docs/scale.md $(SCALE)

package: setup
	./scripts/test package

setup:
	@./scripts/setup
