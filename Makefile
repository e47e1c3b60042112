# Two commands matter: `make demo` and `make test`. Each sets up what it needs.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-spti demo-portraits test test-browser lint venv lock clean

demo: venv
	$(BIN)/python demo/make_demo.py

# Captions evolve by private votes; nothing is trained.
demo-spti: venv
	$(BIN)/python demo/make_spti.py

# Coarse structure from private faces of nobody, detail from public ones.
demo-portraits: venv
	$(BIN)/python demo/make_portraits.py

test: venv lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

# The pages of a release and of a run in a real browser, with axe; fetches Chromium (71 MB) the first time.
test-browser: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: .venv/ready

.venv/ready: pyproject.toml constraints.txt hatch_build.py $(wildcard src/sfumato/privacy/gradients/*.?pp src/sfumato/nets/*.?pp)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sfumato needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Writes constraints.txt anew from what the version ranges of pyproject.toml admit today.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' -e '.[dev]'
	.venv-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-lock demo/data demo/public demo/release demo/release.run demo/spti demo/portraits dist
