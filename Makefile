.PHONY: check lock format

# What CI runs.
check:
	./scripts/test.sh

# Pin every dependency with its hashes; no index address enters the files.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --extra build --extra sandbox --extra alerts -o requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --extra build --extra sandbox --extra postgres --extra s3 --extra alerts -o deploy/docker/requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --all-extras -o requirements-dev.lock pyproject.toml

format:
	ruff check --fix .
	ruff format .
