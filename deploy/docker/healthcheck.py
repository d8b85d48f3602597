"""Exit 0 while the loops of the producer or the worker in this container turn, or the web process answers."""

import sys
import urllib.request

why = ""
for port, path in (
    (8080, "livez"),
    (8081, "livez"),
    (8070, "healthz"),
):  # as `command` of compose.yaml starts them: one process a container
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=4):
            sys.exit(0)
    except OSError as error:
        why += f"port {port}: {error}\n"
sys.exit(why)
