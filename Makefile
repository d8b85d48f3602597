.PHONY: quick check deploy docs release version lock sbom audit format structure

# Before each commit: static checks and unit tests on one Python, in two minutes.
quick:
	./scripts/test.sh --quick

# Before each push: the whole suite.
check:
	./scripts/test.sh

# Every way of running, in containers and machines: ten minutes, as root on Debian.
deploy:
	./scripts/test.sh --deploy

# The pages of docs/ as a site, in site/: a broken link or a page that the index does not name ends it.
docs:
	NO_MKDOCS_2_WARNING=1 "$$(ls -d .venv-test-3.* | sort -V | tail -n 1)/bin/mkdocs" build --quiet

# What a release consists of, in dist/. Before: make version VERSION=1.2.3, which turns [Unreleased] into that version.
release:
	./scripts/release.sh

version:
	python3 scripts/prepare_release.py $(VERSION)

# How the code is built: rooms, files, names, circles, and which functions one message passes.
structure:
	"$$(ls -d .venv-test-3.* | sort -V | tail -n 1)/bin/python" scripts/structure.py --message

# Pin every dependency with its hashes; no index address enters the files.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --extra build --extra sandbox --extra alerts -o requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --extra build --extra sandbox --extra postgres --extra s3 --extra alerts -o deploy/docker/requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --all-extras -o requirements-dev.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate -c requirements-dev.lock --group release -o requirements-release.lock

# The bill of materials of what the image installs, CycloneDX: dist/sbom.cdx.json. Needs no network.
sbom:
	python3 scripts/sbom.py

# Known vulnerabilities of what is installed; needs the Internet. The result goes into docs/dependencies.md.
# --strict: without it, packages that could not be looked up are "No known vulnerabilities found", exit code 0.
audit:
	pip-audit --strict --disable-pip --require-hashes -r requirements.lock -r deploy/docker/requirements.lock

format:
	ruff check --fix .
	ruff format .
