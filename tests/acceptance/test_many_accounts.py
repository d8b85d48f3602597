"""Two hundred accounts in one producer: all of them watched, by how many threads, with how much memory and CPU."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from gmail_sandbox import Credentials, SandboxSettings, running_sandbox
from tests.servers.processes import gmail_settings, place, token_of, until
from tests.servers.redis import RedisServer

ACCOUNTS = 200
IDLE_SECONDS = 30.0


@pytest.mark.soak
def test_one_producer_watches_two_hundred_accounts(tmp_path: Path, own_redis: RedisServer):
    credentials = Credentials(connection_limit=2 * ACCOUNTS)
    with running_sandbox(SandboxSettings(credentials=credentials, mail="3")) as sandbox:
        settings = gmail_settings(sandbox, tmp_path / "here") | {"IMAP_EXCLUDE_LABELS": "none"}
        with place(tmp_path / "here", own_redis.url, **settings) as here:
            (here.folder / "config").mkdir()
            tables = []
            for number in range(ACCOUNTS):
                path = here.folder / f"token-{number}.json"
                path.write_text(json.dumps(token_of(sandbox)))
                tables.append(f'[[accounts]]\nname = "a{number}"\ngoogle_token_file = "{path}"\n')
            (here.folder / "config" / "settings.toml").write_text("\n".join(tables))
            started = time.monotonic()
            producer = here.producer()
            until(lambda: _idle(producer) == ACCOUNTS, "all accounts are watched", 120)
            ready = time.monotonic() - started
            process = psutil.Process(producer.process.pid)
            before = process.cpu_times()
            time.sleep(IDLE_SECONDS)
            after = process.cpu_times()
            cpu = (after.user + after.system - before.user - before.system) / IDLE_SECONDS
            delivered = time.monotonic()
            sandbox.deliver(b"Subject: one more\r\n\r\nhello\r\n")
            produced = 4 * ACCOUNTS
            until(lambda: producer.metric("email_ingestion_emails_produced_total") == produced, "new mail of all", 120)
            latency = time.monotonic() - delivered
            sys.stderr.write(
                f"\n{ACCOUNTS} accounts: all watched after {ready:.1f} s, {process.num_threads()} threads, "
                f"{process.memory_info().rss / 2**20:.0f} MiB, {process.num_fds()} descriptors, "
                f"{cpu:.1%} of a core idle, new mail of all in {latency:.1f} s\n"
            )
            assert process.memory_info().rss < 512 * 2**20
            assert cpu < 0.5
            assert producer.get("/health")[0] == 200


def _idle(producer) -> int:
    return sum(account["watch"] == "idle" for account in producer.status()["accounts"])
