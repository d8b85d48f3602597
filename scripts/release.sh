#!/usr/bin/env bash
# Make what a release consists of, in dist/: wheel, sdist, bill of materials, SHA-256 of each, notes, and the image where
# Docker or Podman runs.
#   scripts/release.sh [--no-image | OPTIONS OF THE BUILD OF THE IMAGE]        CONTAINER_ENGINE=podman, where both are
# The same commit makes the same bytes. The version stands in src/email_ingestion/__init__.py; its section of CHANGELOG.md
# becomes the notes, and without one nothing is made: scripts/prepare_release.py writes both. Tools that only a release
# needs come from the package index, with the hashes of requirements-release.lock.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh

image=yes
if [ "${1:-}" = "--no-image" ]; then
    image=""
    shift
fi
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/email_ingestion/__init__.py)
notes=$(awk -v version="$version" '
    /^## \[/ { wanted = index($0, "## [" version "]") == 1; next }
    wanted' CHANGELOG.md)
if [ -z "${notes//[[:space:]]/}" ]; then
    echo "CHANGELOG.md has no section [$version]: write it, or set __version__" >&2
    exit 1
fi
changed=$(git status --porcelain --untracked-files=no 2>/dev/null || true)
if [ -n "$changed" ]; then
    printf 'not committed yet, so no commit would make what is released:\n%s\n' "$changed" >&2
    exit 1
fi
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

engine=""
if [ -n "$image" ]; then
    for engine in ${CONTAINER_ENGINE:-docker podman} ""; do
        [ -z "$engine" ] || ! "$engine" info >/dev/null 2>&1 || break
    done
    [ -n "$engine" ] || echo "no image: neither Docker nor Podman runs here" >&2
fi

rm -rf dist
mkdir dist
venv=.venv-release
lock=$(cksum requirements-release.lock)
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$lock" ]; then
    rm -rf "$venv"
    "$(find_python)" -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements-release.lock
    echo "$lock" >"$venv/.installed"
fi
"$venv/bin/python" -m hatchling build -d dist >/dev/null
printf '%s\n' "$notes" >dist/NOTES.md
"$venv/bin/python" -m twine check --strict dist/*.whl dist/*.tar.gz
# W009: the sandbox is a package of its own in the same wheel.
"$venv/bin/check-wheel-contents" --ignore W009 dist/*.whl
"$(find_python)" scripts/sbom.py dist/sbom.cdx.json >/dev/null
(cd dist && sha256sum ./*.whl ./*.tar.gz ./sbom.cdx.json >SHA256SUMS)
if [ -n "$engine" ]; then
    # Podman's own format of images has no HEALTHCHECK.
    if "$engine" --version | grep -qi podman; then set -- --format=docker "$@"; fi
    "$engine" build -q -f deploy/docker/Dockerfile --build-arg VERSION="$version" -t "email-ingestion:$version" "$@" . >/dev/null
    made=$("$engine" run --rm --read-only --network=none "email-ingestion:$version" email-ingestion --version)
    if [ "$made" != "$version" ]; then
        echo "the image says that it is $made, not $version" >&2
        exit 1
    fi
    echo "image email-ingestion:$version: $("$engine" image inspect --format '{{.Id}}' "email-ingestion:$version")"
fi
echo "email-ingestion $version:"
ls dist
