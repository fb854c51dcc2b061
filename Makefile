# make demo: train on the bundled names and sample.  make test: the tests.  make test-all: also the matrices in full, as in
# CI.  make lint: style, types, and lines of code a folder.  make docs: measure the course, draw and fill its pages (half
# an hour).  make site: build the pages into site/.  make site-serve: show them at http://127.0.0.1:8000.  Each sets up
# .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint docs site site-serve clean

demo: .venv/run
	$(BIN)/python train.py

test: .venv/dev
	$(BIN)/python -m pytest -n 2 -m "not exhaustive"

test-all: .venv/dev
	$(BIN)/python -m pytest -n 2

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m bench.size

docs: .venv/dev
	$(BIN)/python -m docs.course

site: .venv/docs
	$(BIN)/mkdocs build --strict --quiet

site-serve: .venv/docs
	$(BIN)/mkdocs serve

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@

.venv/docs: requirements-docs.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements-docs.txt
	touch $@

clean:
	rm -rf .venv site .pytest_cache .ruff_cache .mypy_cache .hypothesis
