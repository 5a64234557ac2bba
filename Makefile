# make quickstart   fine-tune the sample on this machine, start to report
# make test         lint, types and tests; what takes longer is in make test-slow
# make evidence     what LoRA+ gives, measured: hours; make evidence-small is ten minutes of it
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where there is no GPU, torch's CPU build does: 0.2 GB rather than several.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
INSTALL := $(BIN)/python deploy/install.py --torch-cpu-index $(TORCH_CPU_INDEX)

.PHONY: quickstart test test-slow test-cluster evidence evidence-small check format sample clean

$(VENV)/installed: pyproject.toml constraints.txt deploy/install.py
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) .[dev]
	touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(INSTALL) .[bench]
	touch $@

quickstart: $(VENV)/installed
	@$(BIN)/python -m raytag.local -- $(BIN)/ray job submit --working-dir . -- \
	    python jobs/finetune.py --config jobs/sample.yaml --output $(CURDIR)/runs/sample

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check
	$(BIN)/pytest -m "not slow and not cluster"

test-slow: $(VENV)/installed-dev
	$(BIN)/pytest -m "slow and not cluster"

# On hosts made of network namespaces: as root on Linux, with iproute2 and util-linux. Training on
# them takes two thirds of the time: HOSTS="cluster and not slow" leaves it out.
HOSTS := cluster
test-cluster: $(VENV)/installed-dev
	$(BIN)/pytest -m "$(HOSTS)"

# RAYTAG_DATA names the folder with the public sets. Stopped, it goes on where it was.
evidence: $(VENV)/installed-bench
	@$(BIN)/python -m raytag.local -- $(BIN)/python benchmarks/evidence.py

evidence-small: $(VENV)/installed-bench
	@$(BIN)/python -m raytag.local -- $(BIN)/python benchmarks/evidence.py --small

sample: $(VENV)/installed
	$(BIN)/python sample/make_corpora.py
	$(BIN)/python sample/pretrain_base.py --out sample/base

clean:
	rm -rf $(VENV) runs
