# Two commands matter: `make demo` shows the main job, `make test` runs everything. Both install what they need.
.PHONY: demo test test-features test-kernels test-worlds bench bench-failover bench-scale package setup

# One selection of packages for all targets, so that nothing is built twice.
BUILD = cargo build --workspace --bins

demo: setup
	$(BUILD)
	$(or $(CARGO_TARGET_DIR),target)/debug/demo $(if $(KEEP),--keep) --backend $(or $(BACKEND),auto)

# The control plane, which takes minutes to build once, is built beside the rest; its tests wait for it, and say what is wrong with it.
test: setup
	nice ./scripts/kube-assets >/dev/null 2>&1 &
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --package egressgateway-testkit --test datapath_geneve --test datapath_worlds -- -D warnings
	$(MAKE) test-features
	$(BUILD)
	cargo test --workspace
	./scripts/test-kernels --only geneve 6.1
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	$(MAKE) package

# The agent without each of its parts: two builds that share none, and those of the images. The usual one takes their place again.
test-features: setup
	for features in vxlan,netfilter geneve,nftables; do \
	    cargo clippy --package egressgateway-agent --all-targets --no-default-features --features $$features -- -D warnings && \
	    cargo test --package egressgateway-agent --no-default-features --features $$features || exit; \
	done
	./scripts/image-agents
	$(BUILD)

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
	./scripts/package

setup:
	@./scripts/setup
