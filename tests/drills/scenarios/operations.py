"""Faults of those who operate: a version that does not start, a backup nobody made, notices nobody gets."""

from __future__ import annotations

import json
import tarfile
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from email_ingestion.backup.archive import Archive, archive_name, list_archives, write_archive, write_manifest_file
from email_ingestion.ledger.store import open_ledger
from tests.drills.scenarios.base import Scenario
from tests.drills.world import World
from tests.servers.poison import poisoned_python
from tests.servers.processes import until
from tests.servers.receiver import http_receiver

LONG_AGO = datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)
BAD_VERSION = """\
import email_ingestion.worker.loop as loop

def run(*_):
    raise AttributeError("a name that the version before had")

loop.Worker.run = run
"""


class BadDeployment(Scenario):
    """A new version whose worker falls over as soon as it has started; somebody started it again and again."""

    name = "bad-deployment"
    fires = frozenset({"NoWorkers"})  # CrashLooping needs workers that live long enough to be seen by Prometheus
    # Time runs faster for the alerts of the consequences than for the heartbeats that make the cause's.
    tolerates = frozenset({"WorkerDown", "QueueBacklogWarning", "QueueBacklogCritical", "FreshnessBudgetBurn"})

    def python_path(self, folder: Path) -> str:
        self._bug = folder
        return poisoned_python(folder, "")

    def inject(self, world: World) -> None:
        (self._bug / "sitecustomize.py").write_text(BAD_VERSION)
        for stem in ("worker", "worker-2"):
            world.kill(stem)
            world.start(stem)
            until(lambda stem=stem: "thread_crashed" in world.log(stem).read_text(), f"{stem} falls over")

    def mend(self, world: World) -> None:
        """Go back to the version before."""
        del world
        (self._bug / "sitecustomize.py").write_text("")


class BackupMissed(Scenario):
    """The timer was switched off long ago: the newest backup is from 2020."""

    name = "backup-missed"
    fires = frozenset({"BackupMissed"})

    def prepare(self, world: World) -> None:
        with closing(open_ledger(f"sqlite:///{world.folder}/data/email_ingestion.db")):
            pass
        done = world.shell("python scripts/backup.py", seconds=90)
        assert done.rc == 0, done.output

    def inject(self, world: World) -> None:
        (made,) = list_archives(world.folder / "backups")
        _predate(made)


class MonitoringBroken(BackupMissed):
    """What takes the notices is gone, and there is something to tell."""

    name = "monitoring-broken"
    settings: ClassVar[dict[str, object]] = {"ALERT_SECONDS": 1}

    def prepare(self, world: World) -> None:
        super().prepare(world)
        self._servers = ExitStack()
        self._receiver = self._servers.enter_context(http_receiver())
        world.write_settings(ALERT_CHANNELS=f"json://127.0.0.1:{self._receiver.port}/")

    def inject(self, world: World) -> None:
        self._receiver.status = 500
        super().inject(world)

    def mend(self, world: World) -> None:
        """Put the right address in, and do what the notice would have asked for."""
        self._receiver.status = 200
        done = world.shell("python scripts/backup.py", seconds=90)
        assert done.rc == 0, done.output

    def finish(self, world: World) -> None:
        del world
        with self._servers:
            until(lambda: any("a test" in json.dumps(each) for each in self._receiver.posted), "a notice arrived")


def _predate(made: Archive) -> None:
    """The same backup, as if it had been made long ago."""
    folder = made.path.parent
    manifest = replace(made.manifest, created_at=LONG_AGO)
    with tarfile.open(made.path) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    path = folder / archive_name(LONG_AGO)
    write_archive(path, manifest, folder / "unpacked")
    write_manifest_file(path, manifest)
    for each in (*(folder / "unpacked").iterdir(), made.path, made.path.with_suffix(".json")):
        each.unlink()
    (folder / "unpacked").rmdir()
