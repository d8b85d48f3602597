"""What the doctor advises for a server that takes no connection."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from email_ingestion.doctor.network_checks import check_connection, unreachable_remedy


def test_a_server_of_this_machine_is_behind_no_firewall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = check_connection("account default server", "127.0.0.1", port, tls=False)
    assert (found.verdict, found.cause) == ("failed", f"127.0.0.1:{port} cannot be reached: Connection refused")
    assert found.remedy.startswith(f"nothing listens on port {port} of this machine")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sandbox.env").write_text("")
    found = check_connection("account default server", "127.0.0.1", port, tls=False)
    assert found.remedy.startswith("./scripts/start.sh starts what has died of the sandbox again")
    assert "firewall" in unreachable_remedy(TimeoutError(), "imap.example.com", 993)
