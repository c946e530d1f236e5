# Two commands do it all on a machine that has Python 3.11 or newer, pip and make:
#   make sweep    set up, then run the main job on the embedded data set
#   make test     set up, then run all checks, the unit tests and one sweep end to end
# `make test-system` runs what needs longer: whole sweeps, trials in processes of their own, clusters, servers, browsers and
# hosts, damaged, killed and slowed down, the tools in benchmarks/, and of some unit tests more values; then
# `make chaos cluster-test`; with SHORT=1 only what CI has time for.
# `make test-lowest` runs the unit tests on the lowest versions that pyproject.toml declares, in an environment of its own (6 GB);
# with SHORT=1 only those of the packages whose versions matter most, with torch, torchvision and ray from $(VENV): nothing of
# those three's lowest versions is shown then.
# `make chaos ROUNDS=40 STRIKES=6 SEED=1` kills processes of real sweeps at random moments, cuts their link to MLflow, and
# looks what became of them.
# `make cluster-test` disturbs a sweep on hosts that are namespaces (Linux, root; else it says so and skips);
# `make cluster-test IMAGE=bdray` in the image of docker/Dockerfile, from podman's store.
# `make screenshots` takes the pictures in docs/images from a real sweep (Chromium and tmux; else it says so and skips).
# On a machine with a GPU, `make gpu` measures what only a GPU can show, in at most 35 minutes after the set-up; on a borrowed
# one, `python -m benchmarks gpu --borrowed 1`, then `2`, in 12 minutes together.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST := $(VENV)-lowest$(if $(SHORT),-short)
SPACE ?= search_spaces/quickstart.yaml
ROUNDS ?= 10
STRIKES ?= 3
SEED := $(or $(SEED),$(shell date +%s))

# What the short form of `make test-lowest` runs: where versions of pydantic, timm, optuna, mlflow, pyarrow and pillow decide.
BOUND := commands/test_backdoorbench_files.py commands/test_reference.py data/test_decoding.py data/test_hostile.py \
    models/networks/test_timm_model.py models/networks/test_weights.py results/test_tables.py searches/test_optuna.py \
    searches/test_study.py space/test_load.py space/test_overrides.py store/test_record_index.py store/test_storage.py \
    test_record.py test_registry.py tracking/test_delivery.py
PYTEST = -m pytest -n 2 --dist loadfile --no-loadscope-reorder -p randomly --randomly-seed=$(SEED)
SAY_SEED = @echo "tests in random order; the same order again: make $@ SEED=$(SEED)$(if $(SHORT), SHORT=1)"

# Where the environment forbids it, as images of containers like to, every process that a test starts compiles bdray anew.
test test-system test-lowest: export PYTHONDONTWRITEBYTECODE :=

.PHONY: sweep test test-system test-lowest lint bench chaos cluster-test screenshots gpu docs site clean

sweep: $(VENV)/installed
	@$(BIN)/python -m bdray.sweep $(SPACE)

test: lint
	$(SAY_SEED)
	@$(BIN)/python $(PYTEST) -m "not system"

test-system: $(VENV)/installed-test
	$(SAY_SEED)
	@$(BIN)/python $(PYTEST) -m "system$(if $(SHORT), and not long)"
	@$(if $(SHORT),,$(MAKE) chaos cluster-test)

test-lowest: $(LOWEST)/installed
	$(SAY_SEED)
	@$(LOWEST)/bin/python -W ignore $(PYTEST) -m "not system" \
	    $(if $(SHORT),$(addprefix tests/,$(BOUND)))

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

$(VENV)-lowest/installed: pyproject.toml
	@echo "installing the lowest versions into $(VENV)-lowest (some minutes and 6 GB) ..."
	@$(PYTHON) -m venv --clear $(VENV)-lowest
	@$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check packaging
	@$(VENV)-lowest/bin/python -m benchmarks.lowest > $(VENV)-lowest/lowest.txt
	@$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV)-lowest/lowest.txt -e '.[test,cmaes]'
	@touch $@

# What is not in it is found in $(VENV). pip says which of the test tools there would rather have newer versions.
$(VENV)-lowest-short/installed: $(VENV)/installed-test pyproject.toml
	@echo "installing the lowest versions of all but torch, torchvision and ray ..."
	@$(PYTHON) -m venv --clear $(VENV)-lowest-short
	@$(BIN)/python -c "import sys; print(*(p for p in sys.path if p.endswith('site-packages')), sep='\n')" \
	    > `$(VENV)-lowest-short/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"`/borrowed.pth
	@$(BIN)/python -m benchmarks.lowest --without torch torchvision ray boto3 psycopg2-binary \
	    > $(VENV)-lowest-short/lowest.txt
	@$(VENV)-lowest-short/bin/python -m pip install --quiet --disable-pip-version-check \
	    -r $(VENV)-lowest-short/lowest.txt 2> $(VENV)-lowest-short/pip.log || { cat $(VENV)-lowest-short/pip.log; exit 1; }
	@$(VENV)-lowest-short/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-lowest-short .pytest_cache .mypy_cache .ruff_cache .hypothesis
