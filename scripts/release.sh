#!/usr/bin/env bash
# Make what a release consists of, in dist/: wheel, sdist, bill of materials, SHA-256 of each, notes, and the image where
# Docker or Podman runs.
#   scripts/release.sh [--no-image]
# The same commit makes the same bytes. The version stands in src/email_ingestion/__init__.py; its section of CHANGELOG.md
# becomes the notes, and without one nothing is made. Tools that only a release needs come from the package index.
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
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

rm -rf dist
mkdir dist
venv=.venv-release
[ -x $venv/bin/twine ] || {
    "$(find_python)" -m venv $venv
    hatchling=$(sed -n 's/^\(hatchling==[^ ]*\).*/\1/p' requirements.lock)
    $venv/bin/pip install -q --disable-pip-version-check "$hatchling" twine==7.0.0 check-wheel-contents==0.6.3
}
$venv/bin/python -m hatchling build -d dist >/dev/null
printf '%s\n' "$notes" >dist/NOTES.md
$venv/bin/twine check --strict dist/*.whl dist/*.tar.gz
# W009: the sandbox is a package of its own in the same wheel.
$venv/bin/check-wheel-contents --ignore W009 dist/*.whl
"$(find_python)" scripts/sbom.py dist/sbom.cdx.json >/dev/null
(cd dist && sha256sum ./*.whl ./*.tar.gz ./sbom.cdx.json >SHA256SUMS)
if [ -n "$image" ]; then
    engine=$(command -v docker || command -v podman || true)
    if [ -n "$engine" ] && "$engine" info >/dev/null 2>&1; then
        "$engine" build -q -f deploy/docker/Dockerfile --build-arg VERSION="$version" -t "email-ingestion:$version" .
    else
        echo "no image: neither Docker nor Podman runs here" >&2
    fi
fi
echo "email-ingestion $version:"
ls dist
