# Two commands are the whole set-up: `make run` and `make test`. Both make .venv first, where it is not there yet.

PYTHON ?= $(shell command -v python3.11 || echo python3)
ONLY   ?=
JOBS   ?=
BIN    := .venv/bin
READY  := .venv/.ready
UV     := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help run test lint bench book lock rivals ort executorch keras mindspore clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16
	@echo '  make run ONLY="O2 decentralized" runs a part: papers, experiment ids, notebooks or globs'

run: $(READY)  ## fetch the data, run every notebook, write runs/latest/index.html
	@$(BIN)/fl-notebooks run $(if $(JOBS),--jobs $(JOBS)) $(ONLY)

test: $(READY)  ## lint, unit tests, notebook structure, saved outputs against a fresh run
	@$(BIN)/python tests/run_all.py

lint: $(READY)  ## ruff over code and notebooks
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(READY)  ## speeds as ratios measured in one run, into benchmarks/results/
	@$(BIN)/python -m benchmarks.run

book: $(READY)  ## a static site of all notebooks, the scorecard, the data and the API: build/book/html/index.html
	@$(BIN)/fl-notebooks book

lock: $(READY)  ## compile requirements.txt and environment.yml from pyproject.toml again
	@$(BIN)/python tests/lock.py

rivals: $(READY)  ## .venv-rivals, the simulators to compare with: pfl, FedLab, Flower (7 GB): make bench uses it where it is there
	@$(UV) venv --quiet --python 3.11 --clear .venv-rivals
	@$(UV) pip install --quiet --python .venv-rivals/bin/python pfl==0.6.0 fedlab==1.3.0 "flwr[simulation]==1.41.0" torch==2.8.0 torchvision==0.23.0 psutil==7.2.2

ort: $(READY)  ## .venv-ort, where ONNX Runtime trains (1 GB): M11 uses it where it is there
	@$(UV) venv --quiet --python 3.11 --clear .venv-ort
	@$(UV) pip install --quiet --python .venv-ort/bin/python onnxruntime-training==1.19.2 onnx==1.17.0 numpy==2.2.6 protobuf==7.36.2

executorch: $(READY)  ## .venv-executorch, where ExecuTorch trains (7 GB): M11 uses it where it is there
	@$(UV) venv --quiet --python 3.11 --clear .venv-executorch
	@$(UV) pip install --quiet --python .venv-executorch/bin/python executorch==1.0.1 torch==2.9.1 torchao==0.14.0 "setuptools<81"

keras: $(READY)  ## .venv-keras, where Keras runs on TensorFlow and on JAX (2 GB): F4 uses it where it is there
	@$(UV) venv --quiet --python 3.11 --clear .venv-keras
	@$(UV) pip install --quiet --python .venv-keras/bin/python keras==3.15.1 tensorflow-cpu==2.21.0 jax==0.10.2 numpy==2.4.6

mindspore: $(READY)  ## .venv-mindspore, where MindSpore Lite runs (needs a Python 3.7): M6 uses it where it is there
	@$(UV) venv --quiet --python 3.7 --clear .venv-mindspore
	@$(UV) pip install --quiet --python .venv-mindspore/bin/python mindspore-lite==2.0.0 numpy==1.21.6

clean:  ## remove the environment, the runs and every cache inside this folder (the user's data cache stays)
	rm -rf .venv .venv-ort .venv-executorch .venv-keras .venv-mindspore .venv-rivals .uv runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One recipe makes the environment; it runs again where the pins or the package's metadata change.
$(READY): requirements.txt pyproject.toml
	@command -v $(UV) >/dev/null 2>&1 || command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "make: neither uv nor $(PYTHON) is here: install one, or name a Python with make PYTHON=..."; exit 1; }
	@command -v $(UV) >/dev/null 2>&1 || { \
	  echo "fetching uv"; $(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet uv; }
	@test -x $(BIN)/python || $(UV) venv --quiet --python 3.11 .venv
	@echo "installing the pinned packages into .venv (about 8 GB on disk, a minute or two)"
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.txt  # or every kernel compiles anew
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
