# Everything runs in .venv; nothing outside this folder and HOUSING_HOME is touched.
PYTHON ?= python3
BIN := .venv/bin
export DO_NOT_TRACK=1
# some images set it, and then every process compiles the product anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test tests ui api dashboard lint fmt docs bench clean

run: .venv/installed
	@$(BIN)/housing run

ui: .venv/installed
	@$(BIN)/housing ui

api: .venv/installed
	@$(BIN)/housing serve

dashboard: .venv/installed
	@$(BIN)/housing dashboard

# side by side: the linters fill what the tests leave idle, half a minute of sixteen
test: .venv/dev
	@$(MAKE) --no-print-directory --jobs=2 lint tests

tests: .venv/dev
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		--durations 12

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	@home=$$(mktemp -d) && mkdir $$home/warehouse && HOUSING_HOME=$$home $(BIN)/sqlfluff lint warehouse; \
		status=$$?; rm -rf $$home; exit $$status
	$(BIN)/python -m tests.dbt_parse

fmt: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/sqlfluff fix warehouse

docs: .venv/dev
	$(BIN)/python -m dagster_project.transform.data_dictionary

bench: .venv/dev
	$(BIN)/python -m benchmarks.run

# where an image sets it, nobody else compiles, and each command that is typed would take ten seconds longer. pip does so
# on one core, this on all; a file that it cannot compile is one that nobody imports, as are the tests of others
COMPILE = $(BIN)/python -m compileall -q -j 0 -x '/tests?/' .venv/lib ml dagster_project expectations || true

# written by: uv pip compile --universal --generate-hashes --no-emit-index-url (see docs/development.md)
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(COMPILE)
	@touch $@

.venv/dev: .venv/installed requirements-dev.lock
	$(BIN)/pip install --quiet --no-compile --no-deps --require-hashes -r requirements-dev.lock
	$(COMPILE)
	@touch $@

clean:
	rm -rf .venv warehouse/target
