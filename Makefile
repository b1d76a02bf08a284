# Two commands: `make demo` and `make test`. Both set up .venv first and may be run again.

PYTHON ?= python3
# The release whose CPU build is taken where one is offered.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test federated kernels check format clean

demo: .venv/ready
	$(BIN)/gifd demo --out runs/demo
	@echo "Open runs/demo/report.html in a browser."

test: .venv/ready check
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# gifd inside a federation of Flower and of NVFlare, in an environment of its own: they need other
# versions.
federated: .venv-federated/ready
	.venv-federated/bin/python -m pytest --override-ini addopts="-q --import-mode=importlib" \
		-W "ignore::DeprecationWarning" -n auto --maxprocesses 2 --dist loadfile tests/integrations

.venv-federated/ready: pyproject.toml
	test -x .venv-federated/bin/python || $(PYTHON) -m venv .venv-federated
	.venv-federated/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	.venv-federated/bin/python -m pip install --quiet --disable-pip-version-check \
		--editable ".[flower,nvflare]" pytest pytest-xdist hypothesis beartype
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
	rm -rf .venv .venv-federated runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
