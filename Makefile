.PHONY: run test coverage test-fast test-rest check docs conformance conformance-compare oracle bench attackers clean help check-settings bounds wheel
VENV := .venv
# Test files at a time: the quick ones work, and the others wait for leases and programs.
AT_ONCE := 4
WAITING_AT_ONCE := 6
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/run: requirements.lock
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

$(VENV)/dev: requirements-dev.lock $(VENV)/run
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

run: $(VENV)/run ## serve on 0.0.0.0:8761 (PORT, HOST, WORKERS, STORE_URL)
	@exec $(VENV)/bin/gunicorn wsgi:app

check-settings: $(VENV)/run ## say what is wrong with settings, users, keys, catalogs and store, without serving
	@$(VENV)/bin/python -m eureka_server --check

test-fast: $(VENV)/dev ## what needs no program but Python and no network: a minute or two
	$(VENV)/bin/python -m pytest -n $(AT_ONCE) --dist loadfile -m "not programs and not slow"

coverage: $(VENV)/dev ## the quick tests, the lines that they reach, and whether those are enough
	mkdir -p build/coverage
	$(VENV)/bin/python -m pytest -n $(AT_ONCE) --dist loadfile -m "not programs and not slow" --cov --cov-config=pyproject.toml

test-rest: $(VENV)/dev ## the others: genuine sources, real clients, and what takes long
	scripts/system-packages
	$(VENV)/bin/python -m tests.programs
	$(VENV)/bin/python -m pytest -n $(WAITING_AT_ONCE) --dist loadfile -m "programs or slow"

test: test-fast test-rest ## everything

check: $(VENV)/dev ## format, lint, strict types, import rules
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

wheel: $(VENV)/dev ## the wheel and the source archive, into build/dist
	$(VENV)/bin/python -m hatchling build -d build/dist

docs: $(VENV)/dev ## the documentation as a site, in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict

conformance: $(VENV)/dev ## what the Eureka server at URL does and does not do (ARGS="--clients all --report DIR")
	$(VENV)/bin/python -m conformance $(URL) $(ARGS)

oracle: $(VENV)/dev ## build and start a genuine server on port 8762 (ARGS="--genuine hoxton")
	scripts/system-packages
	$(VENV)/bin/python -m conformance.compare --serve 8762 $(ARGS)

conformance-compare: $(VENV)/dev ## this server on each store and a genuine one, side by side (ARGS="--examples 2000")
	scripts/system-packages
	$(VENV)/bin/python -m conformance.compare --report build/conformance $(ARGS)

bench: $(VENV)/dev ## beside a genuine server and nginx, into docs/performance.md (ARGS="--rounds 5")
	scripts/system-packages wrk nginx
	$(VENV)/bin/python bench/beside_genuine.py --write docs/performance.md $(ARGS)
	$(VENV)/bin/python bench/full_fetch.py

bounds: $(VENV)/dev ## what is promised of large registries, against its bounds (ARGS="--only watchers --before CHECKOUT")
	$(VENV)/bin/python bench/bounds.py --write docs/performance.md $(ARGS)

attackers: $(VENV)/dev ## heartbeats beside each attack, into docs/performance.md (ARGS="--workers 2 --only tiny_chunks")
	$(VENV)/bin/python bench/attackers.py --write docs/performance.md $(ARGS)

clean: ## remove what make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build
