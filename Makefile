# Every target works alone, from a clean clone on Debian 12 or 13.
.PHONY: help setup demo test fuzz clean
.DEFAULT_GOAL := help

help:
	@echo "make setup   install what is missing (asks first; YES=1 does not ask) and make .venv"
	@echo "make demo    setup, then move a running VM between two hosts made on this machine (root)"
	@echo "make test    setup, then every check and every test (root)"
	@echo "make fuzz    what is read from outside, with many more examples than make test (FUZZ_EXAMPLES=2000)"
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

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
