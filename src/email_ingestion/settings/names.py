"""Names of settings: find a misspelt one before it silently does nothing, and explain a wrong value."""

from __future__ import annotations

import difflib
import re

from pydantic import ValidationError

from email_ingestion.errors import ConfigurationError
from email_ingestion.settings.masking import is_secret

PREFIXES = (
    *("REDIS_", "IMAP_", "GOOGLE_", "WORKER_", "CB_", "STREAM_", "BLOB_", "DATABASE_"),
    *("RECONCILE_", "STOP_", "OPS_", "METRICS_", "LOG_", "PID_", "BACKUP_"),
    *("OAUTH2_", "TOKEN_ENCRYPTION_", "WEBHOOK_", "ALERT_", "RUNBOOK_", "SLACK_ALERT_", "WEB_", "NDJSON_"),
)

# Names that other software owns: Google's own libraries, web servers, and the service links of Kubernetes.
FOREIGN = re.compile(
    r"WEB_CONCURRENCY|WEB_MEMORY|GOOGLE_(APPLICATION_|CLOUD_|API_|COMPUTE_).*|.*_SERVICE_(HOST|PORT)(_.*)?|.*_PORT_\d+_(TCP|UDP)(_.*)?"
)


def refuse_unknown(in_use: dict[str, str], known: set[str]) -> None:
    """Raise ConfigurationError for a name with one of our prefixes that no setting has.

    `in_use` maps each name to the place where it was set; `NAME_FILE` is known when NAME is.
    """
    for name, place in in_use.items():
        if name in known or name.removesuffix("_FILE") in known:
            continue
        if name.startswith(PREFIXES) and not FOREIGN.fullmatch(name):
            raise ConfigurationError(f"{name} in {place} is not a setting; did you mean {_nearest(name, known)}?")


def _nearest(name: str, known: set[str]) -> str:
    longer = sorted(candidate for candidate in known if candidate.startswith(name))
    return (longer or difflib.get_close_matches(name, known, n=1, cutoff=0))[0]


def explain_validation(error: ValidationError) -> str:
    """Say in one sentence which setting is wrong and why, without the value of a secret."""
    first = error.errors()[0]
    name = str(first["loc"][0]).upper() if first["loc"] else ""
    text = first["msg"].removeprefix("Value error, ")
    if not name:
        return text
    given = "" if is_secret(name) else f" (it is {first['input']!r})"
    return f"{name}{given}: {text[0].lower()}{text[1:]}; see config/.env.example"
