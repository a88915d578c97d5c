# One command before every commit: make ready.

CARGO ?= cargo

.PHONY: ready fmt lint test docs deny bench sim plots gossip demo fuzz

ready: fmt lint test docs deny

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

test:
	$(CARGO) test --workspace

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

# Advisories need a database that is not always at hand, so they are not part of it.
deny:
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny check bans licenses sources; \
	else \
		echo "SKIPPED: cargo deny is not installed (cargo install --locked cargo-deny)"; \
	fi

# Side by side with HAProxy, nginx and Envoy on this machine, about 15 minutes; see tests/bench/run --help.
bench:
	tests/bench/run

# Minutes of hostile bytes for datagrams, records and streams, and for what clients and endpoints may send; see
# mesh-proto/fuzz/run --help and sidecar/fuzz/run --help.
fuzz:
	mesh-proto/fuzz/run --seconds 120
	sidecar/fuzz/run --seconds 120

# Balancer and gossip in virtual time against all of their targets, both whatever comes of the first, some minutes; see
# `starling sim --help`.
sim:
	$(CARGO) build --release --bin starling
	@failed=0; \
	target/release/starling sim balance --check || failed=1; \
	target/release/starling sim gossip --scenario all || failed=1; \
	exit $$failed

# The pictures of deploy/balancing.md; see deploy/plots/run --help.
plots:
	deploy/plots/run

# 64 real sidecars beside Serf, as root; see tests/gossip/run --help for parts of it.
gossip:
	tests/gossip/run all

demo:
	$(CARGO) run --release -- demo
