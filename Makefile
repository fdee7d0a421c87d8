# `make demo` and `make test` are the two commands. Each makes the virtual environment first; `make` alone lists the others.

# What this project is
PACKAGE  = mlops_nb
PIPELINE = flights
# whose year is lived through, in short, by `make demo`
REPLAY   = flights
# the extras of pyproject.toml that are locked and installed
EXTRAS   = examples validate tune track ui models serve docs lab postgres proven clients dev
# folders of nbs/ whose notebooks are run as stages, or by tests/, and not tested as lessons
STAGES   = pipelines|predict|replay|benchmarks|tutorials

# How it is made
PYTHON ?= python3.11 python3.12 python3.13 python3
VENV    = .venv
BIN     = $(VENV)/bin
UV      = $(BIN)/uv --quiet
LOCK    = requirements.lock
# MLflow is told of no run of a lesson
NBDEV_TEST = MLOPS_MLFLOW=none $(BIN)/nbdev-test nbs --skip-folder-re '^[_.]|^($(STAGES))$$'
export UV_PYTHON = $(CURDIR)/$(BIN)/python
# modules are compiled once, not at each import
unexport PYTHONDONTWRITEBYTECODE

comma := ,
empty :=
space := $(empty) $(empty)
project = .[$(subst $(space),$(comma),$(strip $(EXTRAS)))]

.PHONY: help demo test docs lab export hooks lock upgrade dist clean distclean venv install
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: venv ## Run the example pipeline
	$(BIN)/mlops-nb run $(PIPELINE)
	$(if $(REPLAY),$(BIN)/mlops-nb replay $(REPLAY) --short)

test: venv ## Test the lessons of the notebooks, then run tests/
	$(NBDEV_TEST)
	$(BIN)/python -m pytest

docs: venv ## Build the site of the notebooks, with what was run (ARGS=--open)
	$(BIN)/mlops-nb docs $(ARGS)

lab: venv ## Open JupyterLab (ARGS=...); notebooks are cleaned as they are saved
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab --ContentsManager.pre_save_hook=nbdev.clean.clean_jupyter $(ARGS)

export: venv ## Bring the package and README.md in step with the notebooks, and clean these
	$(BIN)/python setup.py export
	$(BIN)/nbdev-clean
	$(BIN)/python -c 'from mlops_nb.readme import write_readme; write_readme()'

hooks: venv ## Export and clean at each commit; merge and compare notebooks cell by cell
	$(BIN)/pre-commit install
	git config merge.jupyternotebook.name 'merge notebooks cell by cell'
	git config merge.jupyternotebook.driver '$(CURDIR)/$(BIN)/nbdev-merge %O %A %B %P'
	git config diff.jupyternotebook.command '$(CURDIR)/$(BIN)/nbdev-diff-driver'

dist: venv ## Build the sdist, and the wheel from it, into dist/
	$(BIN)/uv build --no-build-isolation --clear

clean: ## Remove what was built
	rm -rf build dist _proc *.egg-info .pytest_cache
	find $(PACKAGE) nbs tests -name __pycache__ -exec rm -rf {} +

distclean: clean ## Remove the virtual environment too
	rm -rf $(VENV)

# The lock: every package of the environment, for each platform and Python, with its hashes
resolve = $(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' \
	$(EXTRAS:%=--extra %) --output-file $(LOCK)

lock: $(BIN)/uv ## Lock what pyproject.toml asks for, changing no more than it must
	@$(resolve)

upgrade: $(BIN)/uv ## Lock the newest versions that pyproject.toml allows
	@$(resolve) --upgrade

# The virtual environment. It is finished when $(stamp) says from what, and where, it was made: that is written last. One in which an
# installation was interrupted may hold half a package, so it is made anew.
stamp = $(VENV)/.made-from
unfinished = $(VENV)/.unfinished
made_from = $$(cat pyproject.toml setup.py Makefile $(LOCK) 2>/dev/null | cksum) $(CURDIR)
usable = $(BIN)/python -c '' 2>/dev/null && grep -qF '$(CURDIR)/$(VENV)' $(BIN)/activate

venv:
	@if [ "$$(cat $(stamp) 2>/dev/null)" != "$(made_from)" ] || ! { $(usable); }; then $(MAKE) --no-print-directory install; fi

install:
	@rm -f $(stamp)
	@if ! { $(usable); } || [ -e $(unfinished) ]; then rm -rf $(VENV); fi
	@$(MAKE) -s --no-print-directory $(BIN)/uv
	@[ -s $(LOCK) ] || { echo 'Locking what pyproject.toml asks for: $(LOCK)'; $(MAKE) --no-print-directory lock; }
	@echo 'Installing $(LOCK) into $(VENV)'
	@touch $(unfinished)
	@$(UV) pip sync --compile-bytecode $(LOCK) && rm $(unfinished)
	@$(BIN)/uv pip install --no-index --no-build-isolation --compile-bytecode --editable '$(project)' || \
		{ echo 'If that asks for a package: $(LOCK) lacks it, and `make lock` puts it there.' >&2; exit 1; }
	@$(BIN)/python -m compileall -q $(PACKAGE)
	@echo "$(made_from)" > $(stamp)

$(BIN)/uv:
	@$(usable) || { for p in $(PYTHON); do if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "Making $(VENV) with $$($$p --version)"; exec $$p -m venv --clear '$(CURDIR)/$(VENV)'; fi; done; \
		echo 'No Python of version 3.11 or later, with venv, was found (tried: $(PYTHON)).' >&2; \
		echo 'Install it (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@awk '/^[a-zA-Z]/ {uv = /^uv==/} uv' $(LOCK) > $(VENV)/uv.txt 2>/dev/null; [ -s $(VENV)/uv.txt ] || echo uv > $(VENV)/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(VENV)/uv.txt
