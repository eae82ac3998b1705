PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NBDEV2 := .venv-nbdev2
OFFLINE := HF_HUB_OFFLINE=1 MINIAI_DATA=sample OMP_NUM_THREADS=1
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: help train test test-notebooks test-pytest test-nbdev2 export execute readme clean

help:
	@echo 'make train     train the lesson'"'"'s conv model on Fashion-MNIST (OPTS="--recipe base --seed 1")'
	@echo 'make test      run the notebooks as tests, then tests/'
	@echo 'make export    write miniai/*.py from the notebooks'
	@echo 'make execute   clean the notebooks and run them, outputs in place (NBS="nbs/09_learner.ipynb")'
	@echo 'make readme    write README.md from nbs/index.ipynb'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v=sys.version_info; sys.exit(0 if (3,11)<=v<(3,14) else "miniai needs Python 3.11 to 3.13, $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.train: settings.ini setup.py pyproject.toml | $(BIN)/python
	@echo 'Installing miniai and PyTorch into $(VENV); the first time this takes some minutes.'
	$(BIN)/python $(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	@echo 'Installing the development tools into $(VENV).'
	$(BIN)/python $(PIP) -e '.[dev]'
	@touch $@

train: $(VENV)/.train
	$(BIN)/miniai-train $(OPTS)

test: test-notebooks test-pytest

test-notebooks: $(VENV)/.dev
	$(OFFLINE) $(BIN)/nbdev-test --n-workers 2

test-pytest: $(VENV)/.dev
	$(OFFLINE) $(BIN)/python -m pytest tests

# nbdev 2 reads settings.ini and cannot live beside nbdev 3; torch and the rest are taken from $(VENV)
$(NBDEV2)/.installed: $(VENV)/.dev
	$(BIN)/python -m venv $(NBDEV2)
	$(NBDEV2)/bin/python $(PIP) 'nbdev==2.4.14' 'execnb<0.2' 'fastcore<2'
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > $$($(NBDEV2)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/base.pth
	@touch $@

test-nbdev2: $(NBDEV2)/.installed
	$(OFFLINE) PYTHONPATH=. $(NBDEV2)/bin/nbdev_test --n_workers 2

export: $(VENV)/.dev
	$(BIN)/nbdev-export

NBS ?= $(wildcard nbs/*.ipynb)
execute: $(VENV)/.dev export
	for nb in $(NBS); do $(BIN)/nbdev-clean --fname $$nb && $(BIN)/jupyter execute --inplace $$nb || exit 1; done

readme: $(VENV)/.dev
	$(BIN)/jupyter nbconvert --to markdown --stdout --log-level=WARN --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=hide nbs/index.ipynb \
	  | sed -E 's#]\((images/|[0-9]{2}_)#](nbs/\1#' > README.tmp && mv README.tmp README.md

clean:
	rm -rf $(VENV) $(NBDEV2) build dist *.egg-info
