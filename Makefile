# Two commands do it all on a machine that has Python 3.11 or newer, pip and make:
#   make sweep    set up, then run the main job on the embedded data set
#   make test     set up, then run all checks and tests
# `make chaos ROUNDS=40 STRIKES=6 SEED=1` kills processes of real sweeps at random moments, cuts their link to MLflow, and
# looks what became of them.
# `make cluster-test` disturbs a sweep on hosts that are namespaces (Linux, root; else it says so and skips);
# `make cluster-test IMAGE=bdray` in the image of docker/Dockerfile, from podman's store.
# `make screenshots` takes the pictures in docs/images from a real sweep (Chromium and tmux; else it says so and skips).
# On a machine with a GPU, `make gpu` measures what only a GPU can show, in at most 35 minutes after the set-up.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SPACE ?= search_spaces/quickstart.yaml
ROUNDS ?= 10
STRIKES ?= 3
SEED := $(or $(SEED),$(shell date +%s))

.PHONY: sweep test lint bench chaos cluster-test screenshots gpu docs site clean

sweep: $(VENV)/installed
	@$(BIN)/python -m bdray.sweep $(SPACE)

test: lint
	@echo "tests in random order; the same order again: make test SEED=$(SEED)"
	@$(BIN)/python -m pytest -n 2 --dist loadfile -p randomly --randomly-seed=$(SEED)

lint: $(VENV)/installed-test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/installed
	@$(BIN)/python -m benchmarks

chaos: $(VENV)/installed
	@$(BIN)/python -m benchmarks.chaos --rounds $(ROUNDS) --strikes $(STRIKES) --seed $(SEED)

cluster-test: $(VENV)/installed-test
	@$(BIN)/python -m benchmarks.cluster $(if $(IMAGE),--image $(IMAGE))

screenshots: $(VENV)/installed
	@$(BIN)/python -m benchmarks.screenshots $(if $(SWEEP),--sweep $(SWEEP))

gpu: $(VENV)/installed
	@$(BIN)/python -m benchmarks gpu --write

docs: $(VENV)/installed
	@$(BIN)/python -m bdray.commands.reference docs

site: $(VENV)/installed-test
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes and 6 GB the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "installing the test tools ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
