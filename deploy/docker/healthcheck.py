"""Exit 0 while the loops of the producer or the worker in this container turn, or the web process answers."""

import socket
import sys

why = ""
for port, path in (
    (8080, "livez"),
    (8081, "livez"),
    (8070, "healthz"),
):  # as `command` of compose.yaml starts them: one process a container
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=4) as connection:
            connection.sendall(f"GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            answer = connection.makefile("rb").readline().decode(errors="replace").strip()
        if answer.split()[1:2] == ["200"]:
            sys.exit(0)
        why += f"port {port}: {answer}\n"
    except OSError as error:
        why += f"port {port}: {error}\n"
sys.exit(why)
