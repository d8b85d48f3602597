#!/usr/bin/env bash
# Start producer and workers, or with --sandbox everything they need as well. Makes .venv on the first run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv .venv requirements.lock
exec .venv/bin/python -m email_ingestion start "$@"
