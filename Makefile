# Two commands: `make demo` and `make test`. Both set up .venv first and may be run again.

PYTHON ?= python3
# The release whose CPU build is taken where one is offered.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test flower kernels check format clean

demo: .venv/ready
	$(BIN)/gifd demo --out runs/demo
	@echo "Open runs/demo/report.html in a browser."

test: .venv/ready check
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# gifd inside a Flower federation, in an environment of its own: Flower needs other versions.
flower: .venv-flower/ready
	.venv-flower/bin/python -m pytest --override-ini addopts="-q --import-mode=importlib" \
		-W "ignore::DeprecationWarning" tests/integrations

.venv-flower/ready: pyproject.toml
	test -x .venv-flower/bin/python || $(PYTHON) -m venv .venv-flower
	.venv-flower/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	.venv-flower/bin/python -m pip install --quiet --disable-pip-version-check \
		--editable ".[flower]" pytest hypothesis beartype
	touch $@

# The numerical tests once more, on the kernels of the oldest processors.
kernels: .venv/ready
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n auto --maxprocesses 4 -m numerical
	ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m numerical

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-flower runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
