"""Commands of a runbook that would reach beyond the drill: they do the same here to the drill's own servers.

Each call of `systemctl` is written down beside it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.drills.addresses import Addresses

SYSTEMCTL = """\
#!/bin/bash
# systemd as far as a runbook needs it: it knows the drill's Redis.
echo "$*" >>'{calls}'
verb=$1 unit=${{2%.service}}
case $unit in redis|redis-server) ;; *) echo "Unit $2 could not be found in this drill." >&2; exit 5 ;; esac
pid=$(cat '{pid_file}' 2>/dev/null)
runs() {{ [ -n "$pid" ] && [ -e "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status"; }}
stop() {{ if runs; then kill -CONT "$pid"; kill "$pid"; while runs; do sleep 0.05; done; fi; }}
start() {{
    runs && return
    redis-server '{config}' || return
    for _ in $(seq 200); do redis-cli -p {port} ping 2>/dev/null | grep -q PONG && return; sleep 0.05; done
    return 1
}}
case $verb in
    start) start ;;
    stop) stop ;;
    restart) stop; pid=; start ;;
    is-active|status) if runs; then echo active; else echo inactive; exit 3; fi ;;
    *) echo "Unknown command verb $verb in this drill." >&2; exit 1 ;;
esac
"""

TELNET = """\
#!{python}
# Enough of telnet to see whether a port can be reached.
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
print(f"Trying {{host}}...", flush=True)
try:
    socket.create_connection((host, port), timeout=5).close()
except OSError as error:
    sys.exit(f"telnet: Unable to connect to remote host: {{error.strerror or error}}")
print(f"Connected to {{host}}.\\nEscape character is '^]'.\\nConnection closed.")
"""

# The person who gives consent: opens the page in the background, as a browser does, and follows its redirect.
CONSENT = """\
#!/bin/bash
curl -sL --max-time 30 -o /dev/null "$1" </dev/null >/dev/null 2>&1 &
"""

REDIS_CLI = """\
#!/bin/bash
for word in "$@"; do
    case $word in -p|-u|-s) exec '{program}' "$@" ;; esac
done
exec '{program}' -p {port} "$@"
"""

WORKER = """\
#!/bin/bash
k=${{1:-1}}
OPS_PORT=$(({ops} + k)) METRICS_PORT=$(({metrics} + k)) exec python worker.py --instance "$k"
"""


def write_shims(folder: Path, addresses: Addresses, redis_folder: Path) -> Path:
    """Write them into `folder`, to stand first on the PATH; returns it."""
    folder.mkdir(parents=True)
    config = addresses.redis_etc / "redis.conf"
    scripts = {
        "systemctl": SYSTEMCTL.format(
            calls=folder / "systemctl.log", pid_file=redis_folder / "redis.pid", config=config, port=addresses.redis
        ),
        "consent": CONSENT,
    }
    if not shutil.which("telnet"):
        scripts["telnet"] = TELNET.format(python=sys.executable)
    if not addresses.literal:
        scripts["redis-cli"] = REDIS_CLI.format(program=shutil.which("redis-cli"), port=addresses.redis)
        scripts["worker-on-its-ports"] = WORKER.format(ops=addresses.ops, metrics=addresses.metrics)
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder
