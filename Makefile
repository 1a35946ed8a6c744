# Every target sets up what it needs; a second run installs nothing.
PYTHON ?= python3
RUN := $(PYTHON) tools/setup_env.py --run
PYTEST_ARGS ?=
# worksteal keeps neighbours together: fixtures of a module are made once
PARALLEL := -n auto --dist worksteal
DEMO_ARGS ?=
DEMO_WORDS ?= striped blue heart, striped green bolt, dotted red hourglass, plain green circle, checkered white circle
QUICKSTART := output/shapes/ensemble/model_final.pth

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-all lint format quickstart demo benchmark-shapes clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup:  ## make the environment (.venv, unless a suitable one is active)
	@$(PYTHON) tools/setup_env.py

test:  ## the default tests: CPU, offline, about 4 minutes on two cores
	@$(RUN) -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-slow:  ## the long tests alone, which `make test` leaves out
	@$(RUN) -m pytest $(PARALLEL) -m "slow and not gpu and not exhaustive" $(PYTEST_ARGS)

test-all:  ## all tests except for those that need a GPU: also the exhaustive ones
	@$(RUN) -m pytest $(PARALLEL) -m "not gpu" $(PYTEST_ARGS)

lint:  ## ruff, mypy, codespell
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m codespell_lib

format:  ## let ruff mend what it can
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

quickstart:  ## the paper's experiment on two cores, from nothing to a result page
	@$(RUN) -W ignore::FutureWarning tools/quickstart.py

demo:  ## a web page on the quickstart's detector
	@test -f $(QUICKSTART) || { echo "error: expected $(QUICKSTART): run make quickstart first"; exit 2; }
	@$(RUN) -W ignore::FutureWarning tools/web_demo.py $(DEMO_ARGS) \
	    --config-file configs/shapes/vild_ensemble.yaml \
	    --words "$(DEMO_WORDS)" --examples datasets/shapes/val/00000[1-8].png \
	    --opts MODEL.WEIGHTS $(QUICKSTART)

benchmark-shapes:  ## every row of the paper's tables on shapes, three seeds (about two hours)
	@$(RUN) -W ignore::FutureWarning tools/benchmark_shapes.py

clean:  ## remove .venv and all outputs
	rm -rf .venv .venv.lock output
