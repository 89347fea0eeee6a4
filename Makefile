# `make demo` and `make test` need Python 3.10 or newer and a C++ compiler; they set up all else in .venv, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt setup.py $(wildcard csrc/*.*) $(wildcard csrc/cuda/*) $(wildcard metric_kernels/losses/*.py) \
	metric_kernels/metrics.py metric_kernels/extremes.py metric_kernels/digest.py

.PHONY: help setup demo test test-gpu coverage nightly aot sanitize bench bench-gpu lint wheel clean

help:
	@echo "make demo      train on handwritten digits, compare with other libraries, draw pictures"
	@echo "               with ARGS='--loss HistogramLoss' for another loss, ARGS=--help for all options"
	@echo "make test      run the tests"
	@echo "make coverage  the same with branch coverage, a quarter slower"
	@echo "make bench     measure against the matrix products, torch.compile and pytorch-metric-learning"
	@echo "make bench-gpu the same on a GPU, beside siglip-kernel and Inf-CL too, in 10 minutes; says so where there is none"
	@echo "make aot       compile every Triton and CUDA kernel for sm_80 and sm_90; no GPU needed"
	@echo "make test-gpu  run the losses and kernels on a GPU, and the CUDA kernels under compute-sanitizer"
	@echo "make sanitize  run the C++ kernels, and the CUDA kernels on the CPU, under AddressSanitizer and UndefinedBehaviourSanitizer"
	@echo "make nightly   the tests with the slow sweeps and with the CUDA kernels on the CPU, aot and sanitize"
	@echo "make lint | wheel | clean"

setup: $(VENV)/installed

$(VENV)/installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: setup
	$(BIN)/metric-kernels demo $(ARGS)

test: setup
	$(BIN)/python -m pytest -q $(ARGS)

coverage: setup
	$(BIN)/python -m pytest -q --cov --cov-report=term $(ARGS)

REGISTRY := tests/test_losses.py tests/test_term_losses.py tests/test_gradcheck.py
nightly: setup aot sanitize
	$(BIN)/python -m pytest -q -m "slow or not slow"
	METRIC_KERNELS_TEST_DEVICE=cuda-on-cpu $(BIN)/python -m pytest -q $(REGISTRY) -k cuda

# Memory is not cached under the sanitizer, so that it sees what lies beyond an array.
SANITIZER = PYTORCH_NO_CUDA_MEMORY_CACHING=1 CUBLAS_WORKSPACE_CONFIG=:4096:8 compute-sanitizer --error-exitcode 1
GPU = $(BIN)/python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "no CUDA device"; exit 1; }
test-gpu: setup
	@$(GPU)
	METRIC_KERNELS_CUDA=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	METRIC_KERNELS_TEST_DEVICE=cuda CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/python -m pytest -q $(REGISTRY) $(ARGS)
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/python -m pytest -q tests/test_triton.py tests/test_cuda.py tests/test_gpu.py tests/test_choices.py $(ARGS)
	$(SANITIZER) --tool memcheck $(BIN)/python -m pytest -q tests/test_cuda.py -k "losses or ranks or gathered or nearest or histograms or sorted or quadruplets or semi_hard"
	$(SANITIZER) --tool racecheck $(BIN)/python -m pytest -q tests/test_cuda.py -k "losses_over_tuples or ranks or gathered or histograms or sorted or quadruplets or semi_hard"

aot: setup
	$(BIN)/python -m metric_kernels.backends.aot

bench: setup
	$(BIN)/python -m pytest benchmarks -q $(ARGS)
	$(BIN)/python -m benchmarks.bars

# With the CUDA kernels where there is an nvcc; the last thing it prints is which bars are met.
bench-gpu: setup
	@$(GPU)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[bench-gpu]'
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# A second installation, so that the sanitized extension never takes the place of the fast one.
SANITIZED := build/sanitized
sanitize: setup
	METRIC_KERNELS_SANITIZE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(SANITIZED) .
	@ls $(SANITIZED)/metric_kernels/_native* > /dev/null || { echo "the sanitized extension did not compile"; exit 1; }
	@rm -rf build/with-sanitizers
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 PYTHONPATH=$(SANITIZED) METRIC_KERNELS_BACKEND=native \
		$(BIN)/pytest -q -p no:cacheprovider tests/test_native.py tests/test_native_terms.py tests/test_native_vectors.py \
		tests/test_vectors.py tests/test_triplet_margin.py tests/test_losses.py tests/test_ops.py -k native
	cd tests && METRIC_KERNELS_SANITIZE=1 ../$(BIN)/python -c "import cuda_on_cpu; cuda_on_cpu.build()"
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" METRIC_KERNELS_SANITIZE=1 \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		$(BIN)/pytest -q -p no:cacheprovider tests/test_cuda.py -k "not faults and not compiles"

lint: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ruff==0.17.6
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# With the CUDA kernels where there is an nvcc.
wheel: setup
	METRIC_KERNELS_CUDA=$(if $(or $(CUDA_HOME),$(shell command -v nvcc)),1,0) $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info metric_kernels/_native* metric_kernels/_cuda*
