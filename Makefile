# Everything on a fresh machine: each target makes .venv first, if it is missing or older than what it is made from.
#
#   make demo [IMAGES=folder]   a thousand synthetic images (or your photographs) to a contact sheet in demo/
#   make test                   the tests
#   make check                  ruff, mypy, import-linter
#   make evaluate               tables of quality, into docs/evaluation.md (minutes)
#   make bench                  tables of speed, into docs/benchmarks.md (minutes)
#   make clean                  removes .venv, caches and demo/

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
PACKAGES := ingest index serve train deploy
# faiss-gpu where there is an NVIDIA driver, else faiss-cpu: they exclude each other.
FAISS := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP := .venv/.installed-$(FAISS)
RUN := .venv/bin/python -m

.PHONY: demo test check evaluate bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Reseen needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(if $(filter gpu,$(FAISS)),.venv/bin/pip uninstall --quiet --yes faiss-cpu,.venv/bin/pip uninstall --quiet --yes faiss-gpu)
	.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(FAISS),dev]'
	rm -f .venv/.installed-*
	touch $@

demo: $(STAMP)
	.venv/bin/reseen demo $(if $(IMAGES),--images '$(IMAGES)')

test: $(STAMP)
	$(RUN) pytest $(ARGS)

check: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

evaluate: $(STAMP)
	$(RUN) tests.evaluation.run $(ARGS)

bench: $(STAMP)
	$(RUN) tests.benchmarks.run $(ARGS)

clean:
	rm -rf .venv demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
