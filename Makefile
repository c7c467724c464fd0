# Two commands matter: `make demo` shows the main job, `make test` runs everything. Both install what they need.
.PHONY: demo test bench package setup

# One selection of packages for all targets, so that nothing is built twice.
BUILD = cargo build --workspace --bins

demo: setup
	$(BUILD)
	KEEP=$(KEEP) cargo run --quiet --workspace --bin demo

test: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(BUILD)
	cargo test --workspace
	$(MAKE) package

bench: setup
	cargo bench --package egressgateway --bench index

# The libraries choose no Kubernetes version; verifying them alone needs one.
package:
	K8S_OPENAPI_ENABLED_VERSION=1.37 cargo package --workspace --exclude-lockfile --allow-dirty --target-dir target/package-check

setup:
	./scripts/setup
