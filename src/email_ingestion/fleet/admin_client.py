"""The client of `POST /admin/…`: what operators ask of the running processes of this machine, and their state then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.fleet.managed_processes import find_processes, http_client
from email_ingestion.settings import Settings

if TYPE_CHECKING:
    import httpx

# A process may call its dependency first, and wait for it as long as IMAP_TIMEOUT_SECONDS.
ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process of this machine that answers; `body` is its `/status`."""

    stem: str
    ops_url: str
    body: dict[str, Any]

    @property
    def component(self) -> str:
        """Producer or worker."""
        return str(self.body["component"])


def running_processes(settings: Settings) -> list[RunningProcess]:
    """Return the processes of this machine that answer."""
    found = []
    for process in find_processes(settings):
        body = process.status()
        if body and process.ops_url:
            found.append(RunningProcess(process.stem, process.ops_url, body))
    return found


def matching(
    processes: Sequence[RunningProcess], condition: Callable[[RunningProcess], bool], description: str
) -> list[RunningProcess]:
    """Return the processes that fit `condition`; raise OperationFailed when there are none."""
    found = [process for process in processes if condition(process)]
    if not found:
        running = ", ".join(process.stem for process in processes) or "nothing"
        raise OperationFailed(
            f"no process of this machine {description}; {running} runs here (`email-ingestion status`)"
        )
    return found


class AdminClient:
    """Sends requests with the token of OPS_TOKEN_FILE and the name of the `operator`."""

    def __init__(self, settings: Settings, operator: str) -> None:
        """Raises ConfigurationError when the token cannot be read."""
        self._token = _read_token(settings.ops_token_file)
        self._operator = operator

    def post(self, process: RunningProcess, path: str, body: Mapping[str, Any], seconds: float = 0.0) -> dict[str, Any]:
        """Return the state of the process after the request, which takes `seconds` by itself.

        Raises OperationFailed with the reason when the process refuses or does not answer.
        """
        import httpx  # noqa: PLC0415 - slow to load

        headers = {"X-Admin-Token": self._token, "X-Operator": self._operator, "Host": "localhost"}
        try:
            answer = http_client().post(
                f"{process.ops_url}/admin/{path}", json=body, headers=headers, timeout=ANSWER_SECONDS + seconds
            )
            if answer.is_error:
                raise OperationFailed(f"{process.stem} refuses: {_reason(answer)}")
            return dict(answer.json()["state"])
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise OperationFailed(f"{process.stem} does not answer: see logs/{process.stem}.log") from error


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        why = f"cannot read {path}: {error.strerror}"
        raise ConfigurationError(
            f"OPS_TOKEN_FILE: {why}; the first start makes it, for the user that starts the processes"
        ) from error


def _reason(answer: httpx.Response) -> str:
    try:
        return "; ".join(answer.json()["reasons"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
