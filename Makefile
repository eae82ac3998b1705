PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NBDEV2 := .venv-nbdev2
BENCH := .venv-bench
OFFLINE := HF_HUB_OFFLINE=1 MINIAI_DATA=sample OMP_NUM_THREADS=1
PIP := -m pip install --quiet --disable-pip-version-check

# a venv beside .venv that takes torch and the rest from there
beside = rm -rf $(1); $(BIN)/python -m venv $(1) && $(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/base.pth

.PHONY: help train lab test test-notebooks test-pytest test-nbdev2 lint bench docs dist export execute publish readme clean

help:
	@echo 'make train     train the lesson'"'"'s conv model on Fashion-MNIST (OPTS="--recipe base --seed 1")'
	@echo 'make lab       open JupyterLab on the index of the notebooks'
	@echo 'make test      run the notebooks as tests, then tests/'
	@echo 'make bench     measure speed against other libraries (PARTS="loops models"), alone on the machine'
	@echo 'make export    write miniai/*.py and learner.pyi from the notebooks'
	@echo 'make execute   clean the notebooks and run them, outputs in place (NBS="nbs/09_learner.ipynb")'
	@echo 'make lint      check names and lines with ruff'
	@echo 'make dist      build sdist and wheel in dist/, and try both'
	@echo 'make docs      build the site: build/site/index.html'
	@echo 'make publish   set the address of the repository in settings, badges and cells (REPO=https://...)'
	@echo 'make readme    write README.md from nbs/index.ipynb'

# A stamp is written when everything is installed. A venv that was made here and has none was left half made:
# it is made again. One of your own, known by the lack of our prompt, is used as it is.
$(VENV)/.train: settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v=sys.version_info; sys.exit(0 if (3,11)<=v<(3,14) else "miniai needs Python 3.11 to 3.13, $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v[:2])'
	@[ -e $@ ] || ! grep -qs miniai-make $(VENV)/pyvenv.cfg || rm -rf $(VENV)
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv --prompt miniai-make $(VENV)
	@echo 'Installing miniai and PyTorch into $(VENV); the first time this takes some minutes.'
	@rm -f $@
	@$(BIN)/python $(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	@echo 'Installing the development tools into $(VENV).'
	@rm -f $<
	@$(BIN)/python $(PIP) -e '.[dev]'
	@touch $< $@

train: $(VENV)/.train
	$(BIN)/miniai-train $(OPTS)

lab: $(VENV)/.dev
	$(BIN)/jupyter lab $(OPTS) nbs/index.ipynb

test: test-notebooks test-pytest

test-notebooks: $(VENV)/.dev
	$(OFFLINE) $(BIN)/nbdev-test --n-workers 2

test-pytest: $(VENV)/.dev
	$(OFFLINE) $(BIN)/python -m pytest -n 2 --dist worksteal tests

# nbdev 2 reads settings.ini and cannot live beside nbdev 3; torch and the rest are taken from $(VENV)
$(NBDEV2)/.installed: $(VENV)/.dev
	$(call beside,$(NBDEV2))
	$(NBDEV2)/bin/python $(PIP) 'nbdev==2.4.14' 'execnb<0.2' 'fastcore<2'
	@touch $@

test-nbdev2: $(NBDEV2)/.installed
	$(OFFLINE) PYTHONPATH=. $(NBDEV2)/bin/nbdev_test --n_workers 2

$(BENCH)/.installed: $(VENV)/.train
	$(call beside,$(BENCH))
	$(BENCH)/bin/python $(PIP) -e '.[bench]'
	@touch $@

bench: $(BENCH)/.installed
	$(BENCH)/bin/python benchmarks/bench.py $(PARTS)

export: $(VENV)/.dev
	$(BIN)/nbdev-export
	$(BIN)/python tools/stubs.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .

# Each file is installed into a venv of its own, every module imported, and the command run on the sample
TRY := import importlib, pkgutil, miniai; [importlib.import_module(f"miniai.{m.name}") for m in pkgutil.iter_modules(miniai.__path__)]; print(miniai.__file__)
TRAIN := --recipe base --epochs 1 --data sample --restart --out $(CURDIR)/build/dist-run

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	for f in $(CURDIR)/dist/*; do $(call beside,build/dist) && build/dist/bin/python $(PIP) --no-deps $$f && (cd / && $(CURDIR)/build/dist/bin/python -c '$(TRY)' && $(CURDIR)/build/dist/bin/miniai-train $(TRAIN)) || exit 1; done
	$(BIN)/python -m zipfile --list dist/*.whl

$(VENV)/.docs: $(VENV)/.dev
	@echo 'Installing Sphinx into $(VENV).'
	@$(BIN)/python $(PIP) -e '.[docs]'
	@touch $(VENV)/.train $< $@

docs: $(VENV)/.docs
	$(BIN)/python tools/docs.py

NBS ?= $(wildcard nbs/*.ipynb)
execute: $(VENV)/.dev export
	for nb in $(NBS); do $(BIN)/nbdev-clean --fname $$nb && $(BIN)/jupyter execute --inplace $$nb || exit 1; done

publish: $(VENV)/.dev
	$(BIN)/python tools/publish.py '$(REPO)'
	$(MAKE) readme

readme: $(VENV)/.dev
	$(BIN)/jupyter nbconvert --to markdown --stdout --log-level=WARN --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=hide nbs/index.ipynb \
	  | sed -E 's#]\((images/|[0-9]{2}_)#](nbs/\1#; s#]\(\.\./docs/#](docs/#' > README.tmp && mv README.tmp README.md

clean:
	rm -rf $(VENV) $(NBDEV2) $(BENCH) build dist *.egg-info
