#!/usr/bin/env bash
# Drain and stop producer, workers and, where it runs, the sandbox. Exit code 0 when nothing is left running.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${RUNBOOK_COMMANDS:-}" ]; then # in a shell for containers, which are meant then
    # shellcheck source=deploy/docker/commands.sh
    . "$RUNBOOK_COMMANDS"
    _stop
    exit
fi
if [ ! -x .venv/bin/python ]; then
    echo "nothing was ever started here"
    exit 0
fi
umask 077
exec .venv/bin/python -m email_ingestion stop "$@"
