"""What people do while mail flows: purge and replay at once, remove the database, migrate under an old worker."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

from bench.crash_matrix.databases import Sqlite
from bench.crash_matrix.world import Unwell, World
from tests.servers.processes import ROOT, until

OLD = "fe9d612121d21a9e17ef48bec932355874c0e6a6"  # version 0.1.0
SOME = 20  # messages that the old worker has delivered when the new one comes
DROPPED = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"


def purge_and_replay(world: World, rng: Random) -> None:
    """One operator puts dead letters back while another purges them; a worker had died over them."""
    for _ in range(2):
        world.more()
        world.instant(rng)
        world.kill("worker")
        _command(world, "pending", "to-dlq", "--all")
        world.start("worker")
        world.more()
        orders = [("dlq", "replay", "--all"), ("dlq", "purge", "--all", "--yes")]
        rng.shuffle(orders)
        with ThreadPoolExecutor() as people:
            done = [people.submit(_command, world, *words, after=rng.uniform(0, 0.5)) for words in orders]
        for each in done:
            each.result()
        world.up("worker")
    _command(world, "dlq", "replay", "--all")


def _command(world: World, *words: str, after: float = 0.0) -> None:
    time.sleep(after)
    done = world.here.run("-m", "email_ingestion", *words)
    if done.returncode not in {0, 1}:  # 1: there was none
        raise Unwell(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")


@contextmanager
def with_purges(world: World) -> Iterator[None]:
    """Count what was purged as what has its end."""
    world.purges = True
    yield


def database_removed(world: World, rng: Random) -> None:
    """Somebody removes the database under running processes: the file of SQLite, the schema of PostgreSQL."""
    world.more()
    world.instant(rng)
    remove_database(world)
    while world.more():
        world.instant(rng)


def remove_database(world: World) -> None:
    """Remove all that the ledger knows."""
    if isinstance(world.database, Sqlite):
        world.database.path.unlink(missing_ok=True)
    else:
        world.database.rows(DROPPED)


def migration(world: World, rng: Random) -> None:
    """A worker of version 0.1.0 made the database and goes on, while one of this version comes and migrates it."""
    world.muster(())
    remove_database(world)
    for companion in world.data.glob("email_ingestion.db-*"):
        companion.unlink()
    with world.redis.client() as client:
        client.flushall()
    code = old_code(world.here.folder.parent / "old")
    old = replace(world.here, environment=world.here.environment | {"PYTHONPATH": str(code / "src")})
    running = old.start(str(code / "worker.py"), stem="worker")
    running.url()
    world.running["worker"] = running
    world.start("producer")
    world.up("producer")
    world.more()
    until(lambda: (world.delivered() or 0) >= min(SOME, world.arrived), "the old worker delivers")
    world.start("worker-2")
    while world.more():
        time.sleep(rng.uniform(0, 1))
    world.up("worker-2")
    if rng.choice([True, False]):
        world.kill("worker")
        world.start("worker")
        world.up("worker")


def old_code(folder: Path) -> Path:
    """Write the code of the old version into a folder, once."""
    if not folder.exists():
        command = ["git", "-C", str(ROOT), "archive", OLD, "src", "producer.py", "worker.py"]
        archive = subprocess.run(command, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
    return folder


def no_history() -> str:
    """Say why the old code is not to be had; empty where it is."""
    done = subprocess.run(["git", "-C", str(ROOT), "cat-file", "-e", OLD], capture_output=True, check=False)  # noqa: S607
    return "" if done.returncode == 0 else "the history of this repository is not here (git fetch --unshallow)"
