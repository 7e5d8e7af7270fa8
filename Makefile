# Flotta: `make up` runs everything, `make test` proves it, `make help` lists the rest.
#
# Sizes, zones and ports come from the environment: N_COORDINATORS N_NODES ZONES (a,b,c) N_GATEWAYS NUM_SHARDS RF
# COORDINATOR_BASE_PORT NODE_BASE_PORT GATEWAY_PORT ADMIN_PORT DATA_DIR LOG_DIR.

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PYTHON := $(VENV)/bin/python
CLUSTER := $(PYTHON) scripts/local_cluster.py

# What an install is made from; a change to any of it makes the next build do its work again.
NATIVE_SOURCES := $(shell find native -name '*.rs' -not -path '*/target/*' -not -path 'native/fuzz/*') native/Cargo.toml native/Cargo.lock native/flotta_native.pyi native/pyproject.toml
PROTO_SOURCES := $(shell find proto -name '*.proto') hatch_build.py pyproject.toml constraints.txt

.PHONY: help up setup build run-cluster bootstrap-cluster smoke-test stop cluster-status logs wipe-data clean format lint \
	test test-python test-native sim sim-cluster sim-planted sim-cluster-planted self-care kvdb-sequences bench bench-full k6-gateway-bench k6-admin-bench ghz-gateway-bench vegeta-admin-bench soak profile overload fuzz compose-test proto sync-client docs wheels

help: ## list the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

up: setup build run-cluster bootstrap-cluster smoke-test ## everything: tools, build, cluster, bootstrap, smoke test
	@scripts/next_steps.sh

setup: ## check the tools, make the virtual environment
	@scripts/check_tools.sh
	@test -x $(PYTHON) || python3 -m venv $(VENV)
	@$(PYTHON) -m pip --version >/dev/null

build: $(VENV)/.packages $(VENV)/.native ## the native half and the Python packages, into the virtual environment

$(VENV)/.packages: $(PROTO_SOURCES)
	@test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --requirement constraints.txt
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.native: $(NATIVE_SOURCES) | $(VENV)/.packages
	rm -rf build/native
	$(VENV)/bin/maturin build --quiet --release --locked --manifest-path native/Cargo.toml --interpreter $(abspath $(PYTHON)) --out build/native
	$(PYTHON) -m pip install --quiet --no-deps --force-reinstall build/native/*.whl
	@touch $@

proto: ## generate the protobuf stubs anew
	$(PYTHON) hatch_build.py

sync-client: ## generate the blocking client from the asynchronous one
	$(PYTHON) scripts/gen_sync_client.py

run-cluster: build ## start what is missing of the local cluster
	@$(CLUSTER) start

bootstrap-cluster: ## register the nodes and create the shards over HTTP (safe to repeat)
	@$(CLUSTER) bootstrap

smoke-test: ## put and get through every gateway
	@$(CLUSTER) smoke

stop: ## stop the local cluster; data stays
	@$(CLUSTER) stop

cluster-status: ## what runs and what answers
	@$(CLUSTER) status

logs: ## the last lines of every log
	@$(CLUSTER) logs

wipe-data: ## delete the local cluster's data and logs (it must be stopped)
	@$(CLUSTER) wipe

clean: ## stop the cluster and delete everything that was built
	@if [ -x $(PYTHON) ] && [ -d data/pids ]; then $(CLUSTER) stop; fi
	rm -rf build dist native/target bench/results .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -rf $(VENV)

format: build ## put all sources into the house style
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	cargo fmt --manifest-path native/Cargo.toml

lint: build ## style, types and import rules
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	cargo fmt --check --manifest-path native/Cargo.toml

test: ## everything CI runs, on a fresh machine too
	@scripts/test.sh

test-native: ## the Rust tests and clippy
	scripts/test_native.sh

test-python: build ## unit, transcripts, simulation, integration and end to end, without containers
	$(PYTHON) -m pytest

sim: build ## SEEDS=n: that many fresh seeds; SEED=k: replay one exactly and print its transcript
	$(PYTHON) tests/simulation/run.py $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),50))

sim-cluster: build ## SEEDS=n: that many fresh seeds of whole clusters; SEED=k: replay one exactly
	$(PYTHON) tests/simulation/run.py --cluster $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),50))

sim-planted: build ## plant known bugs, one at a time, and count the seeds until the simulator finds each
	$(PYTHON) tests/simulation/planted.py

sim-cluster-planted: build ## the same for the simulator of whole clusters
	$(PYTHON) tests/simulation/planted.py --cluster

self-care: build ## real clusters under load lose, gain and empty nodes, and tell why (two minutes); TRANSPORT=grpcio: over that
	FLOTTA_TEST_TRANSPORT=$(TRANSPORT) $(PYTHON) -m pytest -q -s tests/e2e/test_self_care.py

kvdb-sequences: build ## what KvDB's own scripts and load tools do, request by request; TRANSPORT=grpcio: over that
	FLOTTA_TEST_TRANSPORT=$(TRANSPORT) $(PYTHON) -m pytest -q -s tests/e2e/test_kvdb_sequences.py

bench: build ## Put/Get beside etcd and Redis in alternating rounds of one run, and an idle cluster, against the bars
	scripts/setup_bench.sh
	$(PYTHON) bench/benchmark.py

bench-full: build ## all parts: also batches, shards, values, nodes, saturation, start-up, fail-over (an hour; PARTS=a,b: only these)
	scripts/setup_bench.sh
	$(PYTHON) bench/benchmark.py $(if $(PARTS),--parts $(PARTS),--full)

k6-gateway-bench: build ## k6, KvDB's mix: up to 50 clients, 20 % writes, thresholds (50 s); GATEWAY=host:port: another cluster than its own
	@scripts/go_tools.sh k6
	@$(PYTHON) bench/load_tools.py k6-gateway

k6-admin-bench: build ## k6, KvDB's admin loop: up to 25 operators, all 2xx (40 s); ADMIN=http://host:port ADMIN_API_KEY=…: another cluster
	@scripts/go_tools.sh k6
	@$(PYTHON) bench/load_tools.py k6-admin

ghz-gateway-bench: build ## ghz, KvDB's shape: 20,000 puts, then gets, of one key, c=50; GATEWAY=host:port
	@scripts/go_tools.sh ghz
	@$(PYTHON) bench/load_tools.py ghz-gateway

vegeta-admin-bench: build ## vegeta, KvDB's rate: 300 reads a second for 30 s; ADMIN=http://host:port ADMIN_API_KEY=…
	@scripts/go_tools.sh vegeta
	@$(PYTHON) bench/load_tools.py vegeta-admin

soak: build ## MINUTES=10 at half of capacity: memory, files, threads and tasks must not grow, and every write must be there
	scripts/setup_bench.sh
	$(PYTHON) bench/soak.py --minutes $(or $(MINUTES),10)

profile: build ## where the CPU of gateway and node-1 goes under load; OPERATION=get CONC=200 for others
	scripts/setup_bench.sh
	$(PYTHON) bench/profiles.py --operation $(or $(OPERATION),put) --conc $(or $(CONC),50)

overload: build ## attacks of every kind on a gateway, beside a quiet client: a table
	$(PYTHON) bench/overload.py

fuzz: ## SECONDS=n: every decoder under a fuzzer for so long each; what it finds goes to native/fuzz/corpus
	scripts/fuzz.sh $(or $(SECONDS),60)

wheels: build ## every wheel that a server image needs, into dist/wheels
	rm -rf dist/wheels && mkdir -p dist/wheels
	$(PYTHON) -m pip wheel --quiet --wheel-dir dist/wheels --constraint constraints.txt --find-links build/native ".[server]"

compose-test: wheels ## the docker-compose cluster, on a real engine, end to end
	$(PYTHON) scripts/compose_test.py

docs: build ## generate the configuration reference
	$(PYTHON) scripts/gen_config_docs.py
