#!/usr/bin/env bash
# Start producer and workers, or with --sandbox everything they need as well. Makes .venv on the first run.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${RUNBOOK_COMMANDS:-}" ]; then # in a shell for containers, which are meant then
    # shellcheck source=deploy/docker/commands.sh
    . "$RUNBOOK_COMMANDS"
    _start "$(_workers_of "$@")"
    exit
fi
. scripts/venv.sh
make_venv .venv requirements.lock
umask 077 # what the processes write is for their user alone
exec .venv/bin/python -m email_ingestion start "$@"
