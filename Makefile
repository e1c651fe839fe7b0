# make run   opens the dashboard        make test   checks everything
# make bench measures all, half an hour with nothing else on the machine
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check browser images bench

run: $(VENV)/.installed
	$(BIN)/python -m streamlit run app.py

test: $(VENV)/.installed-dev browser check
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench browser
	for bench in training together store page normalizations checkpoint queue imagenet; do \
	  $(BIN)/python benchmarks/bench_$$bench.py || exit 1; \
	done

images: $(VENV)/.installed-dev browser
	$(BIN)/python docs/make_images.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bnviz needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)"; exit 1; }

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: requirements-bench.txt | $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -r requirements-bench.txt
	@touch $@

# The browser tests drive the system's Chromium. Where Debian's Fashion-MNIST cannot be had, the test
# that reads it is passed over.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	command -v google-chrome >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; \
	else \
	  echo "The tests need Chromium; install it and run make test again (Debian: sudo apt install chromium)."; \
	  exit 1; \
	fi
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  [ ! -d /usr/share/datasets/fashion-mnist ]; then \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends dataset-fashion-mnist; } \
	  || echo "Fashion-MNIST cannot be installed here; its test is skipped."; \
	fi
