# Every target uses .venv, made on first use, unless a virtual environment is active.
ifdef VIRTUAL_ENV
  BIN := $(VIRTUAL_ENV)/bin
else
  BIN := .venv/bin
endif
PY := $(BIN)/python
INSTALLED := $(BIN)/.frisket-installed
READY := $(BIN)/.frisket-ready

.PHONY: demo test check docs bench bench-quick real-shape check-real clean

# What frisket needs to run: all that the demo installs.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# What tests, checks and documentation need besides; pip knows --group since 25.1.
$(READY): $(INSTALLED)
	$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[sentencepiece,tensorboard]" --group dev
	touch $@

demo: $(INSTALLED)  ## fine-tune the bundled base on the bundled instructions (about three minutes of training on two cores)
	$(BIN)/frisket train recipes/demo.yaml --out out/demo

test: $(READY)  ## the whole test suite, without network and without outside data
	$(PY) -m pytest --durations=10 --numprocesses=auto --dist=loadfile

check: $(READY)  ## lint, types, import contract, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(PY) tests/house.py

docs: $(READY)  ## the site, built strictly into site/: a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)  ## speed and memory beside TRL: make bench DATA=folder of gsm8k_train.jsonl and llama_tokenizer.model
	$(PY) -m benchmarks.speed $(DATA)

bench-quick: $(READY)  ## under a minute: names what became slower than the best committed ratios of this kind of machine
	$(PY) -m benchmarks.speed.quick

real-shape: $(READY)  ## three LoRA steps on a Qwen3-0.6B shape, beside plain transformers + PEFT
	$(PY) benchmarks/real_shape.py

check-real: $(READY)  ## with a network: make check-real MODEL=Qwen/Qwen3-0.6B
	$(PY) benchmarks/check_real.py $(MODEL)

clean:
	rm -rf out site .pytest_cache .ruff_cache .hypothesis
