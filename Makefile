# Every target works from a bare clone: it does its own set-up first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv demo demo-cluster test compat differential soak suites fuzz fuzz-traps lint bench bench-cluster bench-udp sim clean

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# Extra words for the tools behind the targets: make test PYTEST_ARGS="-k nginx"
PYTEST_ARGS ?=
SOAK_ARGS ?=
BENCH_ARGS ?=
SUITES_ARGS ?=
# What make fuzz runs, and for how many seconds each.
FUZZ_TARGETS ?= $$($(PYTHON) -c 'import sys; sys.path.insert(0, "tools"); from fuzz.targets import TARGETS; print(*TARGETS)')
FUZZ_SECONDS ?= 60
SIM_ARGS ?=
COMPAT_ARGS ?=
# Programs that `make differential` draws, from which seed on; or one to be played again, as a failure tells it.
DIFF_EXAMPLES ?= 10000
DIFF_SEED ?= 1
DIFF_PROGRAM ?=

help: ## Show this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What Python has compiled is kept by who may write here alone; all others who run it would compile it at each start.
# Who may not write goes on without.
venv: $(INSTALLED) ## Make .venv with .venv/bin/appswitch
	@$(PYTHON) -m compileall -q src >/dev/null || true

$(INSTALLED): pyproject.toml tools/venv.sh tools/debian-packages.sh
	@tools/venv.sh $(VENV)
	@touch $@

demo: venv ## Show the main job on real programs
	@tools/debian-packages.sh curl >/dev/null
	@$(PYTHON) tools/demo.py

demo-cluster: venv ## Show one application over three hosts (as root)
	@tools/debian-packages.sh curl iproute2 redis-server >/dev/null
	@$(PYTHON) tools/demo_cluster.py

test: venv ## Run every test; installs the programs they need from Debian when it may
	@left_out="$$(tools/debian-packages.sh --for-tests)" && \
	  APPSWITCH_LEFT_OUT="$$left_out" $(PYTHON) -m pytest -n "$${APPSWITCH_TEST_JOBS:-$$(($$(nproc) * 3 / 2))}" --dist loadfile $(PYTEST_ARGS)

differential: venv ## Random programs, natively and under the switch (DIFF_EXAMPLES, DIFF_SEED, DIFF_PROGRAM)
	@tools/debian-packages.sh iproute2 >/dev/null
	@DIFF_EXAMPLES="$(DIFF_EXAMPLES)" DIFF_SEED="$(DIFF_SEED)" DIFF_PROGRAM='$(DIFF_PROGRAM)' \
	  $(PYTHON) -m pytest tests/differential/campaign.py -q -s -o timeout=0 $(PYTEST_ARGS)

soak: venv ## Kill the switch's processes a thousand times under load; SOAK_ARGS="--kills 100 --seed 1"
	$(PYTHON) -m pytest -s tests/service/test_service_kills.py --kills 1000 --within 1 $(SOAK_ARGS)

suites: venv ## CPython's own network tests, natively and under the switch; writes docs/suites.md
	@left_out="$$(tools/debian-packages.sh python3.11 libpython3.11-testsuite)" && test -z "$$left_out"
	@PYTHONPATH=tools:tests $(PYTHON) -m suites $(SUITES_ARGS)

compat: venv ## Some forty programs, natively and by every transport; writes docs/compatibility.md (COMPAT_ARGS="nginx"; as root)
	@tools/debian-packages.sh iproute2 python3 >/dev/null
	@PYTHONPATH=tests $(PYTHON) -m compat $(COMPAT_ARGS)

lint: venv ## Style, types and import layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

fuzz: venv ## Fuzz every decoder for a minute; what it finds stays in build/fuzz
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@mkdir -p build/fuzz && cd build/fuzz && for target in $(FUZZ_TARGETS); do \
	  echo "== $$target" && PYTHONPATH=../../tools ../../$(PYTHON) -m fuzz.run $$target $(FUZZ_SECONDS) $$target || exit 1; \
	done

fuzz-traps: venv ## Feed the trap handlers any calls whatever, for FUZZ_SECONDS
	@PYTHONPATH=tests $(PYTHON) tests/hostile/fuzz.py $(FUZZ_SECONDS)

bench: venv ## Measure beside native loopback and a bridge; writes docs/benchmarks.md
	@tools/debian-packages.sh iperf nginx-light wrk redis-server redis-tools postgresql iproute2 strace gcc libc6-dev >/dev/null
	@$(PYTHON) bench/run.py $(BENCH_ARGS)

bench-cluster: venv ## Measure five hosts beside native TCP (as root); writes docs/cluster-benchmarks.md
	@tools/debian-packages.sh iperf iproute2 gcc libc6-dev >/dev/null
	@$(PYTHON) -m bench.cluster $(BENCH_ARGS)

bench-udp: venv ## Measure UDP beside native loopback and a bridge; writes docs/udp-benchmarks.md
	@tools/debian-packages.sh sockperf iperf iproute2 gcc libc6-dev >/dev/null
	@$(PYTHON) -m bench.udp $(BENCH_ARGS)

sim: venv ## Simulate up to 5,000 hosts (about 2 minutes on 2 cores); writes docs/scale.md
	@$(PYTHON) -m bench.scale $(SIM_ARGS)

clean: ## Remove .venv and everything that was generated
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
