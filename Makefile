.PHONY: test setup
test: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace

setup:
	./scripts/setup
