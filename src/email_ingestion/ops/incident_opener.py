"""Opens incidents for alerts by the command that people use, in a process of its own.

So an incident has its assessment, its evidence and its ticket, and the process that was told of the alert goes on.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from email_ingestion.background import start_now
from email_ingestion.errors import OperationFailed, ThreadUnavailable
from email_ingestion.events import AlertReceived, Observe
from email_ingestion.ops.notices import priority_of

NUMBER = re.compile(r"INC-\d{8}-\d{3,}")
NUMBER_SECONDS = 60.0  # until the command has printed the number
WHOLE_SECONDS = 600.0  # until it has collected the evidence
MAX_AT_ONCE = 4
MAX_TITLE = 200  # characters
MAX_NAME = 64


class AlertOfWebhook(BaseModel):
    """One alert as an Alertmanager posts it; what else it says is left aside."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    status: Literal["firing", "resolved"] = "firing"
    labels: dict[str, str]
    annotations: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The name it opens an incident under, as a word of a command: a stranger's rules may have any name."""
        return re.sub(r"[^\w:.-]", "_", self.labels.get("alertname", "")).lstrip("-")[:MAX_NAME] or "unknown"

    @property
    def priority(self) -> str:
        """Our priority, from the label `priority`, else from `severity`."""
        return next(
            (found for name in ("priority", "severity") if (found := priority_of(self.labels.get(name, "")))), "P2"
        )

    @property
    def title(self) -> str:
        """What is wrong, in a few words."""
        return self.annotations.get("summary") or self.annotations.get("description") or self.name


class AlertsOrder(BaseModel):
    """The body of an Alertmanager's webhook: for each firing alert an incident is opened, one for each name."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    alerts: Annotated[tuple[AlertOfWebhook, ...], Field(max_length=100)]


class IncidentOpener:
    """Runs `email-ingestion incident`; thread-safe."""

    def __init__(self, observe: Observe, command: Sequence[str] = (sys.executable, "-m", "email_ingestion")) -> None:
        self._observe = observe
        self._command = tuple(command)
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)

    def open(self, alert: str, priority: str, title: str) -> str:
        """Open an incident, or find the one that is open for this alert; return its number. Raises OperationFailed."""
        self._observe(AlertReceived(alert, priority, firing=True))
        title = " ".join(title.split())[:MAX_TITLE] or alert
        words = ("open", "--severity", priority, "--from-alert", alert, "--unless-open", "--", title)
        answer = self._run(words)
        if not NUMBER.fullmatch(answer):
            raise OperationFailed(f"no incident was opened for {alert}: {answer or 'no answer'}")
        return answer

    def end(self, alert: str, priority: str) -> None:
        """Note in the incident of an alert that it is over, if one is open. Raises OperationFailed."""
        self._observe(AlertReceived(alert, priority, firing=False))
        self._run(("note", "--", alert, f"the alert {alert} is over"))

    def receive(self, order: AlertsOrder) -> dict[str, Any]:
        """Open an incident for each alert that fires, and note in the open ones what is over.

        Raises OperationFailed when one cannot be opened; those that are open are found again when this is repeated.
        """
        answers: dict[str, str] = {}
        for alert in order.alerts:
            if alert.labels.get("severity") == "none" or alert.name in answers:  # a watchdog is no incident
                continue
            if alert.status == "firing":
                answers[alert.name] = self.open(alert.name, alert.priority, alert.title)
            elif not any(each.status == "firing" and each.name == alert.name for each in order.alerts):
                self.end(alert.name, alert.priority)
                answers[alert.name] = "over"
        return {"incidents": answers}

    def _run(self, words: Sequence[str]) -> str:
        """Start the command and return the first line that it prints; the rest of its work goes on without us."""
        if not self._places.acquire(blocking=False):
            raise OperationFailed(f"{MAX_AT_ONCE} incidents are being written just now: try again")
        try:
            process = subprocess.Popen(
                [*self._command, "incident", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._places.release()
            raise OperationFailed(f"`email-ingestion incident` cannot be started: {error.strerror}") from error
        lines: list[bytes] = []
        printed = threading.Event()
        attend = threading.Thread(target=self._attend, args=(process, lines, printed), name="incident", daemon=True)
        try:
            start_now(attend)
        except ThreadUnavailable as error:
            process.kill()
            process.communicate()
            self._places.release()
            raise OperationFailed(f"`email-ingestion incident` cannot be attended: {error}") from error
        printed.wait(NUMBER_SECONDS)
        return lines[0].decode(errors="replace").strip() if lines else ""

    def _attend(self, process: subprocess.Popen[bytes], lines: list[bytes], printed: threading.Event) -> None:
        """Read what the command prints to its end, and end it when it takes unusually long."""
        end = threading.Timer(WHOLE_SECONDS, process.kill)
        end.daemon = True
        with suppress(ThreadUnavailable):  # then nobody ends it
            start_now(end)
        try:
            with process, suppress(OSError, ValueError):
                for line in process.stdout or ():
                    lines.append(line)
                    printed.set()
        finally:
            end.cancel()
            printed.set()
            self._places.release()
