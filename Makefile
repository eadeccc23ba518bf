# Every target sets up all that it needs in .venv, on a machine with Python 3.11 (or later) and make.

PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1

.PHONY: help test demo bench-fold bench-forward bench-serving bench-start bench-swaps bench-export bench-gpu gpu-code clean

help:  ## this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

test: .venv/.test lyc_fx/passes  ## ruff, mypy, pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal  # one thread for each of two workers

demo: .venv/.demo  ## the main job on a real model with a real adapter
	$(BIN)/lyc-fx demo

bench-fold: .venv/.test  ## fold at SDXL size beside cp, LyCORIS and PEFT (ARGS=--small: a quick look)
	$(BIN)/python benchmarks/fold.py $(ARGS)

bench-serving: .venv/.test  ## a batch whose samples have adapters of their own (ARGS="--tokens 1": less)
	$(BIN)/python benchmarks/serving.py $(ARGS)

gpu-code: .venv/.gpu-code  ## inductor's code for a GPU, counted and compiled without one, and its test
	$(BIN)/python benchmarks/gpu_code.py $(ARGS)
	$(BIN)/pytest tests/test_gpu_code.py

lyc_fx/passes:
	ln -s ../passes $@  # an unpacked sdist lacks the link, which mypy needs

bench-forward: .venv/.test  ## calls of adapted models beside PEFT and LyCORIS (ARGS="--sizes 16 --eager": less)
	$(BIN)/python benchmarks/forward.py $(ARGS)

bench-start: .venv/.test  ## a first and a second process with a compiled model, to the first result
	$(BIN)/python benchmarks/second_start.py $(ARGS)

bench-export: .venv/.test  ## MiniLM exported: folded, with slots, with styles, in three runtimes
	$(BIN)/python benchmarks/exported.py $(ARGS)

bench-swaps: .venv/.test  ## adapters that take turns in a compiled UNet: recompiles, and seconds for each swap
	$(BIN)/python benchmarks/swaps.py $(ARGS)

bench-gpu: .venv/.test  ## on a CUDA device: correctness, swaps, calls and merges (ARGS="--out docs/gpu.md")
	$(BIN)/python benchmarks/gpu.py $(ARGS)

clean:  ## remove the environment
	rm -rf .venv

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

.venv/.test: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,demo,parity,onnx]"
	touch $@

.venv/.gpu-code: .venv/.test
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[gpu-code]"
	touch $@
