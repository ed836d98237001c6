# Two commands do everything on a fresh machine: `make demo` and `make test`. They need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PROTO_VENV := .venv-proto
JETSON_VENV := .venv-jetson
INPUTS := pyproject.toml constraints.txt .ci/install_torch.py

.PHONY: demo test test-standin test-jetson check released proto proto-tools ci-deps clean format links
.DEFAULT_GOAL := help

help:
	@echo "make demo     the whole job on this machine, with real data"
	@echo "make test     all tests        make check    ruff, mypy, import-linter"
	@echo "make test-standin  the whole path with an emulated Raspberry Pi 4, and its record"
	@echo "make test-jetson  on a Jetson: TensorRT, the probe and a measurement on the real board"
	@echo "make proto    regenerate the protocol's code"
	@echo "make released  at a release: keep the protocol's promises for the tests"
	@echo "make ci-deps  system packages that some tests use (apt, as root)"
	@echo "make clean    remove what the other commands made"

demo: $(VENV)/.demo
	$(BIN)/fleetfit demo $(DEMO)

test: $(VENV)/.dev $(PROTO_VENV)/.done
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup --no-loadscope-reorder $(TESTS)

# Needs what ci-deps installs, and no privilege.
test-standin: $(VENV)/.dev
	FLEETFIT_TEST_STANDIN=1 $(BIN)/python -m pytest tests/system/test_standin.py
	@echo "The record: benchmarks/results/run-raspberry-pi-4-emulated.json"

# TensorRT's module is for the Python of the board's system, which may be older than what the other targets need. No torch is
# installed; where that Python has torch_tensorrt, the environment sees it, and it is tried along.
test-jetson: $(JETSON_VENV)/.done
	FLEETFIT_TEST_JETSON=1 $(JETSON_VENV)/bin/python -m pytest -m jetson tests/runtimes
	$(JETSON_VENV)/bin/fleetfit selfproof --output selfproof-jetson.zip
	@echo "Proven on this board: TensorRT's calls, the contract of runtimes on it, the probe, and a measurement beside ONNX Runtime."
	@echo "Not proven: a whole job with a server. The record: selfproof-jetson.zip"
	@echo "To make it count: python -m benchmarks.devices --accept selfproof-jetson.zip (docs/selfproof.md), or send it in."

$(JETSON_VENV)/.done: pyproject.toml | links
	$(PYTHON) -m venv $$($(PYTHON) -c 'import importlib.util as u; print("--system-site-packages" if u.find_spec("torch_tensorrt") else "")') $(JETSON_VENV)
	$(JETSON_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --editable ".[onnxruntime]" hypothesis onnx pytest pytest-timeout pytest-xdist
	@touch $@

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.dev $(PROTO_VENV)/.done
	PATH="$(PROTO_VENV)/bin:$$PATH" $(PROTO_VENV)/bin/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. fleetfit/proto/v1/*.proto

# At a release: what the protocol promises from now on (tests/proto/test_evolution.py compares with it).
released: $(VENV)/.dev
	$(BIN)/python -c "import sys, fleetfit; sys.path.insert(0, '.'); from tests.proto.test_evolution import RELEASED, current; (RELEASED / f'{fleetfit.__version__}.binpb').write_bytes(current().SerializeToString(deterministic=True))"

ci-deps:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium libseccomp2 dataset-fashion-mnist systemd qemu-user-static mmdebstrap debian-archive-keyring >/dev/null

clean:
	rm -rf $(VENV) $(PROTO_VENV) $(JETSON_VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .cache demo-out selfproof-*.zip

# The components lie at the root and are links below fleetfit/; some ways of unpacking lose links.
links:
	@test -L fleetfit/core || { echo "fleetfit/core is not a link: this copy was unpacked without symbolic links. Clone it with git (on Windows: git config core.symlinks true) and try again."; exit 1; }

$(VENV)/bin/python: | links
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed here; $(PYTHON) is older. Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(INPUTS) | $(VENV)/bin/python
	$(BIN)/python .ci/install_torch.py constraints.txt
	@touch $@

$(VENV)/.demo: $(VENV)/.torch
	@echo "Installing fleetfit into $(VENV) ..."
	$(PIP) --editable ".[server]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch
	@echo "Installing fleetfit and its development tools into $(VENV) ..."
	$(PIP) --editable ".[dev]"
	@touch $(VENV)/.demo $@

$(PROTO_VENV)/.done: pyproject.toml
	@echo "Installing the protocol compiler into $(PROTO_VENV) ..."
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/python -m pip --disable-pip-version-check install --quiet grpcio-tools==1.76.0 mypy-protobuf==5.1.0
	@touch $@

proto-tools: $(PROTO_VENV)/.done
