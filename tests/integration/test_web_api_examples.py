"""The examples of docs/api-http.md do what they say, in one shell, as a reader types them; only the port is another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from functools import cache
from pathlib import Path

import pytest

from tests.servers.api import delivered, letter
from tests.servers.missing import program
from tests.servers.processes import ROOT, Place, place
from tests.servers.redis import running_redis
from tests.unit.test_docs import fences

PAGE = ROOT / "docs" / "api-http.md"
PORT = ":8070"
REPORT = b"%PDF-1.7"


@cache
def report() -> bytes:
    made = EmailMessage()
    made["From"], made["Subject"] = "Anna <anna@example.org>", "quarterly report"
    made.set_content("as promised")
    made.add_attachment(REPORT, maintype="application", subtype="pdf", filename="report.pdf")
    return made.as_bytes()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with running_redis(tmp_path / "redis") as redis, place(tmp_path / "here", redis.url) as made:
        plain = (f"From: a@example.org\r\nSubject: letter {n}\r\n\r\nhello {n}".encode() for n in range(1, 5))
        delivered(made, [letter(9, report()), *(letter(n, raw) for n, raw in enumerate(plain, 1))])
        yield made


def test_the_examples_work_as_written(here: Place, tmp_path: Path) -> None:
    for name in ("curl", "jq"):
        program(name, name)
    url = here.web().url("web_url")
    commands = tmp_path / "bin"
    commands.mkdir()
    console = commands / "email-ingestion"
    console.write_text(f'#!/bin/sh\nexec {sys.executable} -m email_ingestion "$@"\n')
    console.chmod(0o755)
    blocks = list(fences(PAGE, {"bash"}))
    assert PORT in "".join(blocks)
    made = here.run("-m", "email_ingestion", "tokens", "create", "--scope", "operate")
    assert made.returncode == 0
    identifier = json.loads(here.run("-m", "email_ingestion", "tokens", "list", "--json").stdout)[0]["id"]
    typed = "\n".join(blocks).replace(PORT, f":{url.rpartition(':')[2]}").replace("5f2c81d0a3b4", identifier)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", typed],
        cwd=here.folder,
        env=here.environment | {"PATH": f"{commands}:{here.environment['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (here.folder / "report.pdf").read_bytes() == REPORT
    assert (here.folder / "message.eml").read_bytes() == report()
    assert (here.folder / "token.header").stat().st_mode & 0o077 == 0
    everything = [line for line in done.stdout.splitlines() if line.startswith('{"schema":"email.v1"')]
    assert len(everything) == 5
    assert "no producer answers" in done.stdout
