# make serve   set up .venv if needed and open the dashboard        make serve ARGS="--port 5007 --no-show"
# make test    set up .venv if needed, lint, run the default suite  make test PYTEST_ARGS="-x tests/test_cli.py"
# make bench   timings beside their peers, written to bench.json
#
# TORCH=torch==2.13.0      install exactly this instead of what .ci/setup.sh would choose
# PYTHON=python3.12        the interpreter .venv is made from

PY := .venv/bin/python
ARGS ?=
PYTEST_ARGS ?= -n 2 --dist loadfile

# One thread per test worker: more threads than cores is many times slower, not faster.
THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

# Compiled modules are kept also where the machine asks Python to keep none: every kernel, server and worker of the tests would
# compile torch and panel anew, some ten seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup serve test lint format bench clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints-cpu.txt .ci/setup.sh
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" sh .ci/setup.sh
	@touch $@

serve: .venv/.installed
	$(PY) -m explorer serve $(ARGS)

lint: .venv/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test: lint
	$(THREADS) $(PY) -m pytest $(PYTEST_ARGS)

format: .venv/.installed
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: .venv/.installed
	$(PY) -m explorer bench --out bench.json $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache *.egg-info
