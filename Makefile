# The commands of this repository: `make help` lists them.
# Needs python3 (3.11 or newer) with its venv module, make and git; all else is installed into .venv
# and .tools, from locks with hashes. Nothing outside the checkout is changed.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON  ?= python3
# The newest Python that is supported: pyenv's where it has one, which need not be on the path.
PYTHON_NEWEST ?= $(lastword python3.13 $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13))
GRPCURL := v1.9.3
BIN     := .venv/bin

# A worker each core, each with a Postgres of its own. `make test PYTEST="tests/store -k lease"` narrows.
PYTEST         ?=
PYTEST_WORKERS ?= -n logical --maxprocesses 4 --dist worksteal

# What is ready is named by what went into it and where: unchanged it costs nothing, changed or moved
# it is made anew.
key            = $(shell (pwd; cat $(1)) | cksum | tr -c '0-9\n' '-')
LOCK_READY    := .venv/.locked-$(call key,requirements/dev.txt)
SETUP_READY   := .venv/.ready-$(call key,pyproject.toml clients/python/pyproject.toml)
NEWEST_READY  := .tools/newest/.ready-$(call key,requirements/dev.txt pyproject.toml clients/python/pyproject.toml)
CODEGEN_READY := .tools/codegen/.ready-$(call key,requirements/codegen.txt)
DEPLOY_READY  := .tools/deploy/.ready-$(call key,requirements/deploy.txt)
AUDIT_READY   := .tools/audit/.ready-$(call key,requirements/audit.txt)
GRPCURL_READY := .tools/bin/.grpcurl-$(GRPCURL)
PROMETHEUS_READY := .tools/bin/.prometheus
PGBOUNCER_READY := .tools/pgbouncer/.ready
SPIN_READY := .tools/bin/.spin

.PHONY: help setup demo test transitions test-newest check-wheels lint generate check model image-check faults fuzz hostile hostile-black-box bench sbom audit lock clean
.PHONY: newest codegen deploy audit-tools grpcurl prometheus pgbouncer spin check-deploy

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP_READY) ## install everything into .venv (the other targets do it themselves)

demo: setup ## see it work: events in, signed webhooks out, retries, final states
	@$(BIN)/hookline demo

test: setup grpcurl prometheus pgbouncer ## the whole suite, against a real Postgres, sockets and gRPC
	@$(BIN)/python -m pytest $(PYTEST_WORKERS) $(PYTEST)

lint: setup ## ruff, mypy, import-linter, buf, banned words
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/python -m tests.architecture.language

generate: setup codegen ## generate the stubs from protos/
	@$(BIN)/python protos/generate.py

check: lint codegen check-deploy model ## lint, and: is the generated code current, is the contract kept, what is deployed
	@$(BIN)/python protos/generate.py --check
	@$(BIN)/buf breaking --against protos/released.binpb

# promtool comes with Prometheus, kubectl with Kubernetes; where they are not, this says so.
check-deploy: deploy prometheus
	@.tools/deploy/bin/yamllint --strict -c deploy/yamllint.yaml deploy
	@.tools/deploy/bin/hadolint deploy/Dockerfile
	@.tools/deploy/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml
	@if command -v kubectl >/dev/null; then kubectl kustomize deploy/kubernetes >.tools/deploy/manifests.yaml; \
		else echo "check: no kubectl here: the manifests are checked one by one"; \
			for file in $(MANIFESTS); do echo ---; cat $$file; done >.tools/deploy/manifests.yaml; fi
	@.tools/deploy/bin/kubernetes-validate --strict --quiet .tools/deploy/manifests.yaml
	@if [ -x .tools/bin/promtool ]; then \
		.tools/bin/promtool check config deploy/prometheus/prometheus.yml >.tools/deploy/promtool.log \
			&& .tools/bin/promtool test rules deploy/prometheus/alerts.test.yml >.tools/deploy/promtool.log \
			|| { cat .tools/deploy/promtool.log; exit 1; }; \
		else echo "check: no promtool here: the alert rules are not tested"; fi
MANIFESTS = $(filter-out %/kustomization.yaml,$(wildcard deploy/kubernetes/*.yaml))

image-check: setup ## build the image with podman and run it, locked down (root; skipped, and said, without podman)
	@deploy/image-check $(PYTEST)

# Half a minute of two cores. Where CI is set, a missing tool is a failure.
model: setup spin ## explore every interleaving of the model of the data path, and those of its mutants (docs/model.md)
	@if [ -x .tools/bin/spin ] && command -v gcc >/dev/null; then $(BIN)/python -m tests.model "$(CURDIR)/.tools/bin/spin"; \
		else echo "model: SKIPPED: it needs Spin and gcc"; [ -z "$$CI" ]; fi

# A minute; it downloads what the locks name. Where CI is set, an unreachable package index is a failure.
check-wheels: setup ## install both distributions as wheels without the checkout, and run dev, status and the demo
	@HOOKLINE_TEST_WHEELS=1 $(BIN)/python -m pytest tests/e2e/test_wheels.py $(PYTEST)

# The suite on the newest Python that the image may have, without what reads the repository and what takes minutes.
test-newest: ## the suite on the newest Python, in .tools/newest; PYTHON_NEWEST= names it (skipped, and said, without it)
	@if $(PYTHON_NEWEST) -V >/dev/null 2>&1; then $(MAKE) newest grpcurl pgbouncer && \
		.tools/newest/bin/python -m pytest $(PYTEST_WORKERS) $(or $(PYTEST),$(TESTS_NEWEST)); \
		else echo "test-newest: SKIPPED, nothing was tested: there is no $(PYTHON_NEWEST) here; name one: make test-newest PYTHON_NEWEST=…"; fi
TESTS_NEWEST = $(filter-out $(addprefix tests/,architecture bench deploy docs faults fuzz hostile model),$(sort $(patsubst %/,%,$(dir $(wildcard tests/*/*.py)))) $(wildcard tests/test_*.py))

transitions: setup ## delete each row of the delivery's transition table in turn: its test must fail
	@$(BIN)/python -m tests.transitions

faults: setup pgbouncer ## break real processes again and again, and count: twenty minutes (a short version is in test)
	@HOOKLINE_TEST_FAULTS=long $(BIN)/python -m pytest tests/faults $(PYTEST)

fuzz: setup ## broken input for every parser, half an hour of it (some is in test); EXAMPLES=1000 shortens
	@HOOKLINE_TEST_FUZZ=$(or $(EXAMPLES),20000) $(BIN)/python -m pytest tests/fuzz $(PYTEST_WORKERS) --timeout 0 $(PYTEST)

hostile: setup ## attack a node as a hostile peer does, and measure; ATTACK="ping reset" chooses, SECONDS= shortens
	@$(BIN)/python -m tests.hostile $(if $(SECONDS),--seconds $(SECONDS)) $(ATTACK)

hostile-black-box: setup ## the same by a second script, from outside; ATTACK= chooses, WORKERS=
	@$(BIN)/python -m tests.hostile.black_box $(if $(WORKERS),--workers $(WORKERS)) $(ATTACK)

bench: setup ## measure; SCENARIO="1 3" chooses, ROUNDS=, SECONDS=, WORKERS=, SCALE=, FULL=1, TELEMETRY=
	@$(BIN)/python -m tests.bench $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(WORKERS),--workers $(WORKERS)) $(if $(TELEMETRY),--telemetry $(TELEMETRY)) $(if $(SCALE),--scale $(SCALE)) $(if $(FULL),--full) $(SCENARIO)

sbom: audit-tools ## what the image is made of: dist/sbom.json (CycloneDX)
	@mkdir -p dist
	@PYTHONWARNINGS=ignore .tools/audit/bin/cyclonedx-py requirements requirements/image.txt --pyproject pyproject.toml \
		--output-reproducible --of JSON -o dist/sbom.json
	@echo "sbom: dist/sbom.json, $$(grep -c '"purl"' dist/sbom.json) packages"

# Asks a service on the Internet. `--strict`: a package that could not be looked up is a failure.
LOCKS := requirements/dev.txt requirements/codegen.txt requirements/audit.txt requirements/image.txt requirements/deploy.txt
audit: audit-tools ## are weaknesses known in what is locked? (asks the advisory service)
	@echo "audit: $$(cat $(LOCKS) | grep -o '^[a-z0-9-]*==[^ ;]*' | sort -u | wc -l) packages are locked"
	@.tools/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
		$(foreach lock,$(LOCKS),-r $(lock)) --format json -o .tools/audit/report.json || { \
		echo "audit: failed. A package that could not be audited: the advisory service has no entry for it, or cannot be reached" >&2; exit 1; }
	@echo "audit: $$(grep -o '"vulns"' .tools/audit/report.json | wc -l) packages were audited"

lock: setup ## resolve the dependencies anew; UPGRADE=1 takes the newest
	@$(BIN)/uv pip compile pyproject.toml --extra embedded --group dev $(LOCK) -o requirements/dev.txt
	@$(BIN)/uv pip compile --group codegen $(LOCK) -o requirements/codegen.txt
	@$(BIN)/uv pip compile --group deploy $(LOCK) -o requirements/deploy.txt
	@$(BIN)/uv pip compile pyproject.toml --group build -c requirements/dev.txt $(LOCK) -o requirements/image.txt
	@$(BIN)/uv pip compile --group audit $(LOCK) -o requirements/audit.txt
LOCK = --quiet --generate-hashes --universal --python-version 3.11 --no-header --no-emit-package hookline $(if $(UPGRADE),--upgrade)

clean: ## remove what these targets made
	rm -rf deploy/wheels
	rm -rf .venv .tools build dist *.egg-info clients/python/*.egg-info bench-results hostile-results
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find service clients tests protos -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------- the environments

newest: $(NEWEST_READY)
codegen: $(CODEGEN_READY)
deploy: $(DEPLOY_READY)
audit-tools: $(AUDIT_READY)
grpcurl: $(GRPCURL_READY)
prometheus: $(PROMETHEUS_READY)
pgbouncer: $(PGBOUNCER_READY)
spin: $(SPIN_READY)

$(LOCK_READY):
	$(call environment,.venv,requirements/dev.txt)
	@touch $@

$(SETUP_READY): $(LOCK_READY)
	@echo "setup: installing hookline and hookline-service from this checkout"
	@$(call logged,.venv,.venv/bin/python -m pip install $(PIP) --no-deps --no-build-isolation -e clients/python -e .)
	@rm -f .venv/.ready-* && touch $@
	@echo "setup: ready"

$(NEWEST_READY): PYTHON = $(PYTHON_NEWEST)
$(NEWEST_READY):
	$(call environment,.tools/newest,requirements/dev.txt)
	@$(call logged,.tools/newest,.tools/newest/bin/python -m pip install $(PIP) --no-deps --no-build-isolation -e clients/python -e .)
	@touch $@

$(CODEGEN_READY):
	$(call environment,.tools/codegen,requirements/codegen.txt)
	@touch $@

$(DEPLOY_READY):
	$(call environment,.tools/deploy,requirements/deploy.txt)
	@touch $@

$(AUDIT_READY):
	$(call environment,.tools/audit,requirements/audit.txt)
	@touch $@

# A real client for the tests. Without Go they are skipped, and say so; where CI is set they fail.
$(GRPCURL_READY):
	@if command -v go >/dev/null; then \
		echo "setup: building grpcurl $(GRPCURL)"; \
		mkdir -p .tools/bin && \
		GOBIN="$(CURDIR)/.tools/bin" CGO_ENABLED=0 GOTOOLCHAIN=local \
			go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL) >.tools/grpcurl.log 2>&1 \
			&& rm -f .tools/bin/.grpcurl-* && touch $@ \
			|| { tail -n 5 .tools/grpcurl.log; echo "setup: grpcurl was not built; the tests that need it will say so"; }; \
	else \
		echo "setup: no Go here, so no grpcurl; the tests that need it will say so"; \
	fi

# A real Prometheus: asked by the dashboard's test, and promtool by `make check`; from Debian's package, unpacked and not installed.
$(PROMETHEUS_READY):
	@if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then \
		echo "setup: unpacking Debian's prometheus"; \
		mkdir -p .tools/bin .tools/prometheus && \
		( cd .tools/prometheus && apt-get -o Acquire::http::Timeout=20 -o Acquire::Retries=1 download prometheus && dpkg -x prometheus_*.deb . ) >.tools/prometheus.log 2>&1 \
			&& mv .tools/prometheus/usr/bin/prometheus .tools/prometheus/usr/bin/promtool .tools/bin/ \
			&& rm -rf .tools/prometheus && touch $@ \
			|| { tail -n 3 .tools/prometheus.log; echo "setup: no Prometheus was had; the tests that need it will say so"; }; \
	else \
		echo "setup: no Debian here, so no Prometheus; the tests that need it will say so"; \
	fi

# A real pooler, with the one library that most machines lack; unpacked and not installed.
$(PGBOUNCER_READY):
	@if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then \
		echo "setup: unpacking Debian's pgbouncer"; \
		mkdir -p .tools/pgbouncer && \
		( cd .tools/pgbouncer && for package in pgbouncer libevent-2.1-7 libc-ares2; do \
			apt-get -o Acquire::http::Timeout=20 -o Acquire::Retries=1 download $$package; done; \
			for file in *.deb; do dpkg -x $$file . && rm $$file; done; usr/sbin/pgbouncer --version || \
			LD_LIBRARY_PATH="$$(echo $(CURDIR)/.tools/pgbouncer/usr/lib/*-linux-gnu*)" usr/sbin/pgbouncer --version ) >.tools/pgbouncer.log 2>&1 \
			&& touch $@ \
			|| { tail -n 3 .tools/pgbouncer.log; rm -rf .tools/pgbouncer; echo "setup: no PgBouncer was had; the tests that need it will say so"; }; \
	else \
		echo "setup: no Debian here, so no PgBouncer; the tests that need it will say so"; \
	fi

# The model checker of `make model`, obtained as Prometheus is. It writes C, which gcc compiles.
$(SPIN_READY):
	@if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then \
		echo "setup: unpacking Debian's spin"; \
		mkdir -p .tools/bin .tools/spin && \
		( cd .tools/spin && apt-get -o Acquire::http::Timeout=20 -o Acquire::Retries=1 download spin && dpkg -x spin_*.deb . ) >.tools/spin.log 2>&1 \
			&& mv .tools/spin/usr/bin/spin .tools/bin/ && rm -rf .tools/spin && touch $@ \
			|| { tail -n 3 .tools/spin.log; echo "setup: Spin could not be obtained; make model will say so"; }; \
	else \
		echo "setup: no Debian here, so no Spin; make model will say so"; \
	fi

PIP := --disable-pip-version-check --no-input --progress-bar off

# $(1): where, $(2): the lock.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "setup: $(PYTHON) is missing or older than 3.11. Install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "setup: this Python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "setup: $(1) with $$($(PYTHON) -V), $$(grep -c '^[a-z].*==' $(2)) packages from $(2)"
	@$(PYTHON) -m venv --clear $(1)
	@$(call logged,$(1),$(1)/bin/python -m pip install $(PIP) --require-hashes --only-binary :all: -r $(2))
endef

# Runs $(2) with its output in $(1)/setup.log; counts the packages aloud meanwhile, and shows the end of the log if it fails.
define logged
	( seen=$$(grep -c '^Collecting' $(1)/setup.log); while sleep 1 && kill -0 $$$$ 2>/dev/null; do \
		n=$$(grep -c '^Collecting' $(1)/setup.log); [ "$$n" = "$$seen" ] || echo "setup:   $$n …"; seen=$$n; done ) 2>/dev/null & \
	$(2) >>$(1)/setup.log 2>&1; status=$$?; kill $$! 2>/dev/null; \
	[ $$status = 0 ] || { tail -n 15 $(1)/setup.log >&2; echo "setup: failed; the whole log is $(1)/setup.log" >&2; exit 1; }
endef
