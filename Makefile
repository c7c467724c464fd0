# Two commands matter: `make demo` shows the main job, `make test` runs everything. Both install what they need.
.PHONY: demo test bench package setup

# One selection of packages for all targets, so that nothing is built twice.
BUILD = cargo build --workspace --bins

demo: setup
	$(BUILD)
	cargo run --quiet --workspace --bin demo -- $(if $(KEEP),--keep) --backend $(or $(BACKEND),auto)

test: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(BUILD)
	cargo test --workspace
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	$(MAKE) package

bench: setup
	cargo bench --package egressgateway --bench index

# Builds every crate that is published from its own package. The libraries choose no Kubernetes version, so one is chosen here. A debug
# build in a target directory of its own: it shows that packages are complete, and is not rebuilt where nothing changed.
package: setup
	CARGO_PROFILE_DEV_DEBUG=0 K8S_OPENAPI_ENABLED_VERSION=1.37 cargo package --workspace --exclude egressgateway-testkit --exclude egressgateway-examples \
		--allow-dirty --target-dir target/package-check

setup:
	@./scripts/setup
