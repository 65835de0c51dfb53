# make bench      train and time the cells written here and torch's: bench.csv and the report
# make ablate     train and time the GRU with its gates fixed, on text and four tasks: ablate.csv, tasks.csv, the report
# make reproduce  train the models whose perplexities the book publishes, on its two protocols: reproduce.csv
# make probe      train on tasks that ask what a gate is for, until they are solved: tasks.csv, probes.csv
# make claims     train what nineteen claims of the literature are about, and give each a verdict: claims.csv
# make questions  ask of the ablation what a reviewer asks: rates chosen, stopped early, two layers, another text
# make exercises  answer the four exercises of the book's chapter: gates, sizes, RNN and GRU, parts of a GRU
# make report     build the tables and the report again from what is on file, training nothing
# make compare    compare A B, two results folders or REVISION:FOLDER: what differs, and whether B is worse by LIMIT=
# make gate       bench, then compare with the folder BASE=, for a CI: status 0 not worse, 1 worse, 3 too noisy to tell
# make list       what there is, what would run, and which runs are done
# make test       every check, on a machine with no GPU
# make lint       ruff and mypy
# make sweep      time every engine by hidden size and number of seeds: speed.csv and the report; FULL= for all of it
# make latency    time one step of one sequence (p50, p99), and where a training step goes: latency.csv and the report
# make speed      time forward, backward and whole step of each variant; speed-compare: and beside the time before
# make peers      one training step by our engines, torch's modules, torch.compile and JAX: peers.csv, peers.svg
# make faults     processes killed, disks full, memory out, for real: what is lost; for 40 minutes
# make docs       every figure of README.md and docs/ again from results/reference
# make licenses   what is installed and under which licence: docs/licenses.md, and docs/sbom.json (CycloneDX)
# make clean      remove results (not results/reference), saved timings and caches
#
# Choose with NAME=value, like: make bench VARIANTS="rnn gru" SEEDS=3
#   PROTOCOL   quick, classic, v1, book CORPUS    time-machine, or the path of a UTF-8 file (SET=text=raw: as it is)
#   DEVICE     cpu, cuda or auto        SEEDS     how many trainings a variant, or until-decided
#   VARIANTS   like "gru gru:R=1"       SET       fields of the protocol, like "epochs=20 hidden=16,32,64" (a list: an axis)
#   MAX        the most of SEEDS=until-decided        MATCH   hidden or parameters: what variants share
#   TASKS      of probe, like "adding copy"           LENGTHS of probe, like "10 50"
#   INIT       own, book or torch       RESULTS   folder to write to, results if not given
#   ENGINE     auto, library, resident, native, scan, fused, loop or book: what trains
#   LIMIT      what counts as worse, of compare and gate        TO    a page to write, like compare.html
#   ON         a cluster that trains: ray, ray:HOST:PORT, slurm, slurm:PARTITION (docs/cluster.md)
#   SHARD      like 1/4: every fourth seed, into a folder of its own; then python -m harness merge
#   MIXED=1    with ON=ray: nodes of several classes of bits may train
#   PYTHON     use this interpreter as it is and install nothing; else make fills .venv, once

NAMES := PROTOCOL CORPUS DEVICE ENGINE SEEDS VARIANTS RESULTS INIT SET FULL TASKS LENGTHS MAX MATCH A B BASE LIMIT TO ON SHARD MIXED PYTHON
TARGETS := help bench ablate reproduce probe claims questions exercises sweep latency report compare gate list test lint speed speed-compare peers faults docs licenses clean
# Of the tests and of make itself; no verb takes them.
OTHERS := CC CELLS CHECKPOINT_S DELAYS_MS KILLS PEERS STARTS STOPS SHELL

# A NAME= or a target that is none is a slip: said, with what may have been meant, before anything runs.
quoted = '$(subst ','\'',$(1))'
meant = $(shell for python in $(call quoted,$(value PYTHON)) .venv/bin/python python3; do \
  PYTHONPATH=. "$$python" -c 'import sys; from harness.__main__ import strange; print(strange(*sys.argv[1:3], sys.argv[3:]))' \
  '$(1)' $(call quoted,$(2)) $(3) 2>/dev/null && break; done)
slip := $(firstword $(filter-out $(NAMES) $(OTHERS),$(foreach n,$(.VARIABLES),$(if $(findstring command,$(origin $n)),$n))))
ifneq ($(slip),)
$(error $(or $(call meant,NAME=,$(slip)=$(value $(slip)),$(NAMES)),no NAME= $(slip). There are: $(NAMES)))
endif
slip := $(firstword $(filter-out $(TARGETS) .venv/.installed,$(MAKECMDGOALS)))
ifneq ($(slip),)
$(error $(or $(call meant,target,$(slip),$(TARGETS)),no target $(slip). There are: $(TARGETS)))
endif
$(foreach n,SEED VARIANT TASK LENGTH RESULT seeds variants protocol corpus device engine tasks lengths results,\
  $(if $(findstring environment,$(origin $n)),$(warning note: $n in the environment is no NAME= and means nothing)))

# Values go to the shell as they were typed, through the environment: make expands no `$` in them, the shell no quotes.
$(foreach name,$(NAMES),$(eval override $(name) := $$(value $(name))))
export $(NAMES)
export PYTHONSAFEPATH := # set, it would hide this folder from Python

SHELL := /bin/sh
.NOTPARALLEL:
.PHONY: $(TARGETS) unusable

help:
	@sed -n -e '/^#/!q' -e 's/^# \{0,1\}//p' Makefile

# What every verb needs first: an interpreter, as $python.
ifeq ($(strip $(PYTHON)),)
ready := .venv/.installed
python := python=.venv/bin/python
else
python := python=$$PYTHON; command -v "$$python" >/dev/null || \
  { printf 'error: no interpreter %s; leave PYTHON= out and make fills .venv itself\n' "'$$python'" >&2; exit 2; }
endif

# `set -f`: lists are split at spaces, and no * in them is a file. `exec`: a signal to make's child is Python's.
bench ablate reproduce probe claims questions exercises sweep latency report gate list: $(ready)
	@$(python); set -f; set -- $@; for field in $$SET; do set -- "$$@" --set="$$field"; done; \
	exec "$$python" -m harness "$$@" $${INIT:+--set=init="$$INIT"} $${MATCH:+--set=match="$$MATCH"} $${PROTOCOL:+--protocol="$$PROTOCOL"} \
	  $${CORPUS:+--corpus="$$CORPUS"} $${DEVICE:+--device="$$DEVICE"} $${SEEDS:+--seeds="$$SEEDS"} $${MAX:+--max="$$MAX"} \
	  $${ENGINE:+--engine="$$ENGINE"} $${FULL:+--full} $${TASKS:+--tasks $$TASKS} $${LENGTHS:+--lengths $$LENGTHS} $${RESULTS:+--results="$$RESULTS"} $${VARIANTS:+--variants $$VARIANTS} \
	  $${BASE:+--base="$$BASE"} $${LIMIT:+--limit="$$LIMIT"} $${TO:+--to="$$TO"} \
	  $${ON:+--on="$$ON"} $${SHARD:+--shard="$$SHARD"} $${MIXED:+--mixed}

compare: $(ready)
	@$(python); exec "$$python" -m harness compare "$$A" "$$B" $${LIMIT:+--limit="$$LIMIT"} $${TO:+--to="$$TO"}

test: $(ready)
	@$(python); exec "$$python" -m pytest --halves

lint: $(ready)
	@$(python); "$$python" -m ruff check && "$$python" -m ruff format --check && exec "$$python" -m mypy

speed: $(ready)
	@$(python); exec "$$python" -m tests.speed --benchmark-autosave

speed-compare: $(ready)
	@ls .benchmarks/*/*.json >/dev/null 2>&1 || { echo 'error: nothing to compare with: run make speed first' >&2; exit 2; }
	@$(python); exec "$$python" -m tests.speed --benchmark-autosave --benchmark-compare

# JAX has a folder of its own too: nothing here needs it.
peers: $(ready)
	@$(python); set -f; test -d .tools/peers/jax || "$$python" -m pip install --disable-pip-version-check -q --no-deps \
	  --target .tools/peers jax jaxlib ml_dtypes opt_einsum || exit; \
	for threads in 1 2; do PYTHONPATH=.tools/peers PEERS="jax compile $$PEERS" THREADS=$$threads "$$python" -m tests.peers \
	  peers.csv || exit; done; echo 'peers.csv, peers.svg'

faults: $(ready)
	@$(python); exec "$$python" -m tests.faults

docs: $(ready)
	@$(python); exec "$$python" -m docs.splice

# The tools have a folder of their own: .venv stays what is described.
licenses: $(ready)
	@$(python); test -x .tools/bin/cyclonedx-py || { "$$python" -m venv --clear .tools && \
	  .tools/bin/python -m pip install --disable-pip-version-check -q --require-hashes -r requirements/tools.txt; } || exit; \
	.tools/bin/pip-licenses --python="$$python" --format=markdown --with-urls --order=name >docs/licenses.md && \
	.tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o docs/sbom.json "$$python" && \
	echo 'docs/licenses.md, docs/sbom.json (CycloneDX)'

# Only in this folder: nothing that RESULTS= names, nothing behind a link.
clean:
	@for path in results/* results/.[!.]* .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache tests/.benchmarks \
	  docs/__pycache__ $(foreach top,harness variants tests,$(top)/__pycache__ $(top)/*/__pycache__ $(top)/*/*/__pycache__); do \
	  case $$path in results/reference) continue ;; results/*) test ! -h results || continue ;; esac; \
	  if test -e "$$path" || test -h "$$path"; then rm -rf "$$path" && echo "removed $$path" || exit; fi; \
	done

# The stamp is made last: an installation that was interrupted is done again. So is one whose Python is gone.
ifneq ($(shell test -x .venv/bin/python || echo gone),)
.venv/.installed: unusable
endif
.venv/.installed: requirements/packages.txt requirements/torch.txt
	@new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! { .venv/bin/python -c "$$new_enough" && .venv/bin/python -m pip --version; } >/dev/null 2>&1; then \
	  for python in python3 python3.13 python3.12 python3.11 ''; do \
	    test -n "$$python" || { echo 'error: Python 3.11 or newer is needed, and none is on the PATH' >&2; exit 2; }; \
	    "$$python" -c "$$new_enough" 2>/dev/null && break; \
	  done; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "error: $$python cannot make .venv: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; \
	      exit 2; }; \
	  echo "making .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear .venv || exit 2; \
	fi; \
	echo 'installing requirements/*.txt into .venv: once, minutes, torch is large'; \
	pip() { .venv/bin/python -m pip --disable-pip-version-check "$$@"; }; rm -rf .venv/torch; \
	torch=$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/torch.txt); \
	pip install --no-deps --require-hashes -r requirements/packages.txt && \
	pip download --no-deps --dest .venv/torch "$$torch" && \
	pip install --no-deps --require-hashes --no-index --find-links .venv/torch -r requirements/torch.txt && \
	pip install "$$torch" && pip check && rm -rf .venv/torch && touch $@
