# Every verb of the project. `make help` lists them.
PYTHON ?= python3
PORT ?= 8000
SAM_PORT ?= 3000
IMAGE := cloud-native-poc
SEEDS ?= 1000
START ?= 0
SECONDS ?= 120
WORKERS ?= auto
VENV := .venv/bin
PIP := pip install --quiet --disable-pip-version-check --no-deps --require-hashes
# Gives .venv the console script. `compat` puts a path there, and not code that each start of Python would run
PIP_HERE := pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
SAM := .venv-sam/bin/sam
# What operators keep beside the code
PLACES := backups incidents logs metrics
# Services of Compose with an image of their own that the profiles ask for
BESIDES = $(if $(findstring s3,$(COMPOSE_PROFILES)),s3) $(if $(findstring postgres,$(COMPOSE_PROFILES)),postgres) $(if $(findstring observability,$(COMPOSE_PROFILES)),prometheus)
REVISION_HERE := git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown
FAST_TESTS := -m "not e2e" -n $(WORKERS) --dist worksteal

export PORT
# For what runs here. A database of somebody's own keeps its backups beside it
serve dev maintain backup restore: export BACKUP_URL ?= $(if $(DATABASE_PATH)$(DATABASE_URL),,file://$(CURDIR)/backups)

.DEFAULT_GOAL := help

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-15s %s\n", $$1, $$2 }' Makefile

install: .venv/installed ## create .venv with everything that serving and testing need

# Output goes to stderr: the stdout of `make serve` is the service's JSON log and nothing else
.venv/installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (PYTHON=... names one), this is " + sys.version)'
	@$(PYTHON) -m venv .venv >&2
	@$(VENV)/$(PIP) -r requirements-dev.txt >&2
	@$(VENV)/$(PIP_HERE) >&2
	@ln -sf "$$($(VENV)/python -m apsw.sqlite_extra --path sqlite3_shell)" $(VENV)/sqlite3
	@touch $@

.venv-sam/installed: requirements-sam.txt
	@$(PYTHON) -m venv .venv-sam >&2
	@.venv-sam/bin/$(PIP) -r requirements-sam.txt >&2
	@touch $@

.venv-contract/installed: requirements-contract.txt
	@$(PYTHON) -m venv .venv-contract >&2
	@.venv-contract/bin/$(PIP) -r requirements-contract.txt >&2
	@touch $@

.venv-bench/installed: requirements-bench.txt
	@$(PYTHON) -m venv .venv-bench >&2
	@.venv-bench/bin/$(PIP) -r requirements-bench.txt >&2
	@touch $@

serve: .venv/installed ## run the service on http://localhost:8000 (PORT=... changes it)
	@mkdir -p $(PLACES)
	@exec $(VENV)/python -m handler

dev: .venv/installed ## the same, and start it anew when the code changes
	@mkdir -p $(PLACES)
	@exec $(VENV)/python -m handler.dev

test: .venv/installed ## run the fast tests side by side (WORKERS=0: one after the other)
	@$(VENV)/python -m pytest $(FAST_TESTS)

test-coverage: .venv/installed ## the same with coverage, which takes twice as long: below 90 % it fails; a report in htmlcov/
	@rm -f .coverage-of-revision
	@$(VENV)/python -m pytest $(FAST_TESTS) --cov --cov-report=term --cov-report=html
	@revision=$$($(REVISION_HERE)); case $$revision in *-dirty | unknown) ;; *) \
	  echo "$$revision $$($(VENV)/coverage report --format=total --precision=2)" > .coverage-of-revision ;; esac

test-postgres: .venv/installed ## run the tests of the API on a PostgreSQL that they start (needs its programs)
	@REQUIRE_POSTGRES=1 $(VENV)/python -m pytest $(FAST_TESTS) --on postgresql tests/handler

sim: .venv/installed ## simulate the commit log under every kind of trouble (SEEDS=1000 START=0; SEED=42 shows one)
	@$(VENV)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --start $(START))

fuzz: CASES ?= 100000
fuzz: .venv/installed ## put odd input to all that reads what comes from outside (CASES=100000 START=0)
	@$(VENV)/python -m tests.fuzz --cases $(CASES) --start $(START)

model: .venv/installed ## check the commit protocol at small size, in every order of steps
	@$(VENV)/python -m tests.model

check: .venv/installed ## hold real servers under real trouble to their promises (SECONDS=120; SEED=42 makes the same trouble, WITHOUT=shell leaves one kind out)
	@$(VENV)/python -m tests.checker --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(WITHOUT),--without $(WITHOUT))

drill: .venv/installed ## rehearse the runbook's incidents in containers, and measure RTO and RPO (ONLY="store away" does one)
	@$(VENV)/python -m tests.drills $(if $(ONLY),--only "$(ONLY)")

evidence: SECONDS = 300
evidence: .venv/installed ## make docs/evidence/ anew from a run under load, SECONDS=300 of it (needs Docker, wrk, chromium)
	@$(VENV)/python -m tests.evidence --seconds $(SECONDS)

contract: CASES ?= 200
contract: .venv/installed .venv-contract/installed ## hold a live server to openapi.json, by schemathesis (CASES=200 a phase and operation; SEED=42 sends the same)
	@$(VENV)/python -m tests.contract --cases $(CASES) $(if $(SEED),--seed $(SEED))

e2e: .venv/installed .venv-sam/installed .venv-contract/installed .venv-bench/installed ## run the end-to-end tests: real server, real Lambda runtime
	@$(VENV)/python -m pytest -m e2e

bench: SECONDS = 3
bench: ROUNDS = 3
bench: .venv/installed .venv-bench/installed ## measure the service beside its peers, into docs/performance.md (SECONDS=3 ROUNDS=3 of each load; needs wrk)
	@$(VENV)/python -m benchmarks.http --seconds $(SECONDS) --rounds $(ROUNDS)

bench-scaling: SECONDS = 3
bench-scaling: ROUNDS = 3
bench-scaling: .venv/installed ## measure the service on one log and on PostgreSQL, into docs/scaling.md (needs wrk, PostgreSQL)
	@$(VENV)/python -m benchmarks.scaling --seconds $(SECONDS) --rounds $(ROUNDS)

bench-cold-start: SIZES = 1,100,1000
bench-cold-start: ROUNDS = 3
bench-cold-start: .venv/installed .venv-bench/installed ## measure starts with nothing but the log, into docs/cold-starts.md (SIZES=1,100,1000 MB)
	@$(VENV)/python -m benchmarks.cold_start --sizes $(SIZES) --rounds $(ROUNDS) --write

bench-quick: .venv/installed .venv-bench/installed ## the same in short, and hold what can be counted to benchmarks/counts.json (needs wrk, valgrind)
	@$(VENV)/python -m benchmarks.http --quick
	@$(VENV)/python -m benchmarks.counts

bench-log: .venv/installed ## measure what commits cost, as Markdown
	@$(VENV)/python -m benchmarks.commit_log

bench-search: .venv/installed ## measure what it costs to find part of a name, as Markdown
	@$(VENV)/python -m benchmarks.search

bench-costs: .venv/installed ## count what a month costs at S3's prices, as Markdown
	@$(VENV)/python -m benchmarks.costs

bench-images: .venv/installed ## measure the container images, as Markdown
	@$(VENV)/python -m benchmarks.images

bench-middleware: .venv/installed ## measure what each layer of middleware adds to a request, as Markdown
	@$(VENV)/python -m benchmarks.middleware

bench-metrics: .venv/installed ## measure what it costs to count, as Markdown
	@$(VENV)/python -m benchmarks.metrics

bench-calm: .venv/installed ## measure how long reads take beside 64 writers and beside maintenance, as Markdown (needs wrk)
	@$(VENV)/python -m benchmarks.calm

lint: .venv/installed ## check style and common mistakes
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .

lint-files: .venv/installed ## check Dockerfile, workflows, shell scripts, and that Aurora DSQL takes the migrations
	@$(VENV)/$(PIP) -r requirements-lint.txt >&2
	@$(VENV)/hadolint Dockerfile
	@$(VENV)/actionlint -shellcheck $(VENV)/shellcheck
	@$(VENV)/zizmor --quiet --offline .github
	@$(VENV)/shellcheck .ci/run scripts/*.sh
	@sql=$$($(VENV)/python -c 'from core.migrations import postgresql, scripts; print(*map(postgresql.for_dsql, scripts("postgresql")))') \
	  && echo "$$sql" | $(VENV)/dsql-lint -

requirements: .venv/installed ## write requirements*.txt anew after a change of a requirements*.in (UPGRADE=1 also raises what no .in names)
	@$(VENV)/$(PIP) -r requirements-lint.txt >&2
	@for name in requirements requirements-s3 requirements-otel requirements-postgres requirements-dev requirements-lint requirements-sam requirements-contract requirements-bench; do \
	  $(VENV)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes $(if $(UPGRADE),--upgrade) \
	    --output-file $$name.txt $$name.in || exit; \
	done

audit: .venv/installed ## look for pinned packages, and parts of the scripts that are served, with known fixes (MAY_SKIP=1 passes without a network)
	@$(VENV)/python scripts/known_fixes.py $(if $(MAY_SKIP),--may-skip)

type: .venv/installed ## check types
	@$(VENV)/mypy

fmt: .venv/installed ## format the code, mend what can be mended
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

openapi: .venv/installed ## write openapi.json anew after a change of the API
	@$(VENV)/python -m handler.openapi > openapi.json.new && mv openapi.json.new openapi.json

validate: .venv/installed .venv-sam/installed ## check template.yaml
	@$(SAM) validate --lint --template template.yaml --region eu-central-1
	@$(VENV)/cfn-lint template.yaml

maintain: .venv/installed ## merge, write a snapshot and a backup, prove both, delete what is old
	@$(VENV)/python -m infra maintain

backup: .venv/installed ## back up the newest state (LABEL=pre-deploy keeps the backup for ever)
	@$(VENV)/python -m infra backup $(if $(LABEL),--label "$(LABEL)")

restore: .venv/installed ## make an earlier state the newest one (NAME=latest, or AT=2026-01-31T12:00:00Z, or TXID=1a4)
	@$(VENV)/python -m infra restore $(if $(AT),--at "$(AT)") $(if $(TXID),--txid "$(TXID)") $(if $(NAME),"$(NAME)")

build: export VERSION ?= $(shell $(MAKE) --silent version)
build: export REVISION ?= $(shell $(REVISION_HERE))
# What `make test-coverage` has measured of this very revision
build: export COVERAGE ?= $(shell sed -n "s/^$$($(REVISION_HERE)) //p" .coverage-of-revision 2>/dev/null)
# Always `latest`, whatever the Compose file names: a tag with a version is somebody's way back
build: ## build the container image
	docker buildx build --load --target server $(addprefix --build-arg ,BASE_IMAGE VERSION REVISION COVERAGE) --tag $(IMAGE):latest .
	$(if $(strip $(BESIDES)),docker compose build $(BESIDES))

version: ## print the version, which core/__init__.py has
	@sed -n 's/^__version__ = "\([^"]*\)".*/\1/p' core/__init__.py

run: build ## run the service in a container, in the background (COMPOSE_PROFILES=s3 adds one on a local S3, postgres one on PostgreSQL, observability Prometheus and Grafana)
	@mkdir -p data $(PLACES)
	docker compose up -d --wait

stop: ## stop and remove the containers; the data stays
	docker compose --profile '*' down

logs: ## follow the container's log
	docker compose logs --follow --no-log-prefix app

test-docker: ## run the fast tests inside the image
	docker buildx build --load --target test --tag $(IMAGE):test .
	docker run --rm $(IMAGE):test

sam-local: .venv-sam/installed ## run the function on http://localhost:3000 (SAM_PORT=...), its commit log in a local S3
	docker compose --profile s3 up -d --build --wait s3
	$(SAM) build
	AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test $(SAM) local start-api --config-env local --port $(SAM_PORT)

clean: ## remove what the tools made; data/ stays
	rm -rf build *.egg-info .venv .venv-sam .venv-contract .venv-bench .aws-sam .mypy_cache .pytest_cache .ruff_cache .hypothesis htmlcov .coverage .coverage.* .coverage-of-revision

.PHONY: help install serve dev test test-postgres test-coverage sim fuzz model check drill evidence contract e2e bench bench-quick bench-log bench-search bench-costs bench-images bench-middleware bench-metrics bench-calm bench-scaling bench-cold-start lint lint-files requirements audit type fmt openapi validate maintain backup restore build version run stop logs test-docker sam-local clean
