# Every target works alone, from a clean clone on Debian 12 or 13.
.PHONY: help setup demo test fuzz kill-matrix failover-matrix soak path-soak clean
.DEFAULT_GOAL := help

help:
	@echo "make setup   install what is missing (asks first; YES=1 does not ask) and make .venv"
	@echo "make demo    setup, then move a running VM between two hosts made on this machine (root)"
	@echo "make test    setup, then every check and every test (root)"
	@echo "make fuzz    what is read from outside, with many more examples than make test (FUZZ_EXAMPLES=2000)"
	@echo "make kill-matrix   setup, then kill, stop and cut off everything at 26 points of a journey (root; 15 minutes)"
	@echo "make failover-matrix   setup, then break one of two paths in every way at every moment (root; 10 minutes)"
	@echo "make soak    setup, then journeys with faults at random moments (root; MINUTES=60, SEED=n repeats one)"
	@echo "make path-soak   setup, then saturated journeys on a busy machine: no path may be removed (root; MINUTES=20)"
	@echo "make clean   remove .venv and what the tools left; installed packages stay"

setup:
	@scripts/setup

demo: setup
	.venv/bin/livemove demo

# pytest is last, so that its closing line ends the output
test: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest

fuzz: setup
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-2000} .venv/bin/python -m pytest tests/fuzz

# SHARD=1/2 plays the first of two halves; without it both play side by side
kill-matrix: setup
	.venv/bin/python -m tests.kill_matrix $(if $(SHARD),--shard $(SHARD))

# TIMES=3 plays every cell three times
failover-matrix: setup
	.venv/bin/python -m tests.failover_matrix --json docs/reports/failover.json $(if $(TIMES),--times $(TIMES)) $(if $(MINUTES),--minutes $(MINUTES))

soak: setup
	.venv/bin/python -m tests.soak --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

path-soak: setup
	.venv/bin/python -m tests.soak.paths --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
