# The two commands of the README are `make run` and `make test`; each makes its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

CLIENTS := .clients

.PHONY: run test mutants torture lint types clients clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

run: $(VENV)/.ready
	$(BIN)/billing demo

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

# All three say what they find, whatever the others found; pytest's summary comes last.
test: $(VENV)/.ready
	@$(MAKE) --no-print-directory clients || echo "other people's clients could not be installed; their tests are skipped" >&2
	@failed=0; \
	$(BIN)/ruff check . || failed=1; \
	$(BIN)/mypy || failed=1; \
	$(BIN)/python -m pytest -n 2 || failed=1; \
	exit $$failed

# Every campaign against what must never be lost, at full size: about an hour on two cores; goes on where it was stopped.
# Some of it needs root and the Debian packages named in .ci/run. TORTURE="power kill --share 0.1" runs a part.
torture: $(VENV)/.ready
	$(BIN)/python -m tests.torture --write $(TORTURE)

# Every changed line of billing/ledger must make a test fail, or stand in tests/ledger/mutants.toml. An hour of one core
# at most; what was checked before and has not changed is not checked again.
mutants: $(VENV)/.ready
	LEDGER_COMMANDS=1600 $(BIN)/mutmut run
	$(BIN)/python -m tests.ledger.mutants

lint: $(VENV)/.ready
	$(BIN)/ruff check .

types: $(VENV)/.ready
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(CLIENTS) mutants build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
