#!/usr/bin/env bash
# Drain and stop producer, workers and, where it runs, the sandbox. Exit code 0 when nothing is left running.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x .venv/bin/python ]; then
    echo "nothing was ever started here"
    exit 0
fi
umask 077
exec .venv/bin/python -m email_ingestion stop "$@"
