# make demo: run the quickstart pipeline on this machine.
# make test: install the test dependencies, start a Slurm cluster, run all tests (they start Ceph's object gateway).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slurm-24 lint types format cluster-up cluster-down lock clean

demo: $(VENV)/installed
	$(BIN)/stagger launch pipelines/quickstart.yaml

test: $(VENV)/installed-dev $(VENV)-models/installed lint
	tests/cluster/install.sh
	tests/rgw/install.sh
	tests/cluster/up.sh >/dev/null
	tests/run.sh $(PYTEST_ARGS)

# The cluster tests on Debian 13: Slurm 24.11, Python 3.13. Needs root.
test-slurm-24:
	tests/debian13/run.sh /opt/stagger/bin/python -m pytest -m slurm $(PYTEST_ARGS)

lint: $(VENV)/installed-dev
	@! git grep -nE '^(<{7}|>{7}|\|{7})( |$$)' || { echo 'lint: the lines above are merge-conflict markers' >&2; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types

# For the oldest Python that we run on; from 3.12 on for 3.12, because the types of the numpy that is installed there need it.
types: $(VENV)/installed-dev
	$(BIN)/mypy $$($(BIN)/python -c 'import sys; print("--python-version=3.12" * (sys.version_info >= (3, 12)))')

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cluster-up:
	tests/cluster/install.sh
	tests/cluster/up.sh

cluster-down:
	tests/cluster/down.sh
	eval "$$(tests/cluster/second.sh)"; tests/cluster/down.sh; STAGGER_CLUSTER_SITE=1 tests/cluster/down.sh

# Update the pinned versions of all dependencies. Without the pins the resolver searches for minutes.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --no-annotate --no-header \
		--output-file constraints.txt --upgrade

clean:
	rm -rf $(VENV) $(VENV)-models $(VENV)-models-oldest dist build runs .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	tools/make-venv.sh "$(PYTHON)" $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/installed

$(VENV)-models/installed: $(VENV)/installed-dev tools/make-models-venvs.sh tools/models.txt tools/models-oldest.txt
	tools/make-models-venvs.sh $(VENV)
	touch $@
