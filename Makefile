# `make demo` and `make test` are all a new machine needs; both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
INSTALLED := $(VENV)/.installed
EXTRAS := .venv-extras
EXTRAS_INSTALLED := $(EXTRAS)/.installed

.PHONY: demo test slow test-extras lint install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,fallback,litert,bayes,detection,retrieval]"
	touch $@

demo:
	@date +%s > .demo-started
	@$(MAKE) --no-print-directory install
	$(BIN)/python -m scripts.demo --started "$$(cat .demo-started)" $(DEMO_ARGS)
	@rm -f .demo-started

# Two processes; the tests of one file stay together, as they share what is costly to make.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: install
	$(BIN)/python -m pytest -m slow

# What needs Ray or the libraries of the hubs, slow tests too, in an environment of its own: the other tests
# have to pass without these.
test-extras: $(EXTRAS_INSTALLED)
	$(EXTRAS)/bin/python -m pytest -m extra -rs

$(EXTRAS_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EXTRAS)
	$(EXTRAS)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,cluster,hub,litert]"
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(EXTRAS) .demo-started build *.egg-info
