"""Orders that take a while: each runs in a thread, and its page shows how far it is. They are lost with the process.

What an order leaves undone when the process ends is simply ordered again, as its command would be.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from email_ingestion.background import start_now
from email_ingestion.errors import EmailIngestionError, OperationFailed, ThreadUnavailable
from email_ingestion.ops.logs import logger
from email_ingestion.ops.redaction import describe_unforeseen, redact

ORDERS = "/orders"  # the path of their pages
KEPT = 50  # ended ones, the latest

JobState = Literal["running", "done", "failed"]


@dataclass(slots=True)
class Job:
    """An order under way or ended; `result` is a sentence. Times are Unix seconds."""

    id: str
    title: str
    user: str
    back: str  # the page it was ordered on
    total: int
    done: int = 0
    state: JobState = "running"
    step: str = ""
    result: str = ""
    started_at: float = field(default_factory=time.time)
    ended_at: float | None = None

    def begin(self, step: str, total: int) -> None:
        """Go on to the next step, which has so many units."""
        self.step, self.total, self.done = step, total, 0

    def advance(self, count: int) -> None:
        """Note that so many more units are done."""
        self.done += count

    def set_done(self, count: int) -> None:
        """Note that so many units are done in all."""
        self.done = count


class Jobs:
    """The orders of this process; thread-safe."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, title: str, user: str, back: str, work: Callable[[Job], str]) -> Job:
        """Run `work` in a thread; it returns the sentence that is shown at the end.

        Raises OperationFailed while the same order runs, ThreadUnavailable where no thread can be started.
        """
        job = Job(secrets.token_urlsafe(9), title, user, back, 0)
        with self._lock:
            if any(each.state == "running" and each.title == title for each in self._jobs.values()):
                raise OperationFailed(f"{title}: that is under way already")
            ended = [key for key, each in self._jobs.items() if each.state != "running"]
            for key in ended[: max(0, len(ended) - KEPT)]:
                del self._jobs[key]
            self._jobs[job.id] = job
        try:
            start_now(threading.Thread(target=_run, args=(job, work), name=f"job-{job.id}", daemon=True))
        except ThreadUnavailable:
            with self._lock:
                del self._jobs[job.id]
            raise
        return job

    def find(self, job_id: str) -> Job | None:
        """Return an order by its id."""
        with self._lock:
            return self._jobs.get(job_id)


def _run(job: Job, work: Callable[[Job], str]) -> None:
    try:
        job.result, state = work(job), "done"
    except EmailIngestionError as error:
        job.result, state = redact(str(error)), "failed"
    except Exception as error:  # noqa: BLE001 - its page must say that it ended
        logger("web").error("web_order_failed", exc_info=error)
        job.result, state = f"an error that nobody foresaw: {describe_unforeseen(error)}", "failed"
    job.ended_at = time.time()
    job.state = "done" if state == "done" else "failed"
