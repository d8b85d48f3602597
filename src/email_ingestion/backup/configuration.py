"""The configuration in one file: settings, alerts, contacts and what else lies in `config/`, without its secrets.

Every secret is left out and named, so that whoever restores knows which to put in again: an archive is copied to more
places than a secret should be. Values that only name a file (`…_FILE`) stay.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from email_ingestion.atomic_files import atomic_write
from email_ingestion.errors import OperationFailed
from email_ingestion.settings import mask_url
from email_ingestion.settings.masking import MASK, is_secret

PLACES = (".env", "config", "docs/runbooks")
SUFFIXES = {"", ".env", ".toml", ".yml", ".yaml", ".json", ".conf", ".md", ".ini"}
LEFT_OUT = "LEFT-OUT.txt"
MAX_BYTES = 5_000_000  # of a file: what is larger is no configuration
# `NAME=value`, `name = "value"`, `name: value`; in front may stand blanks, a dash of a list, `export`.
_SETTING = re.compile(r"^(?P<head>[\s#-]*(?:export\s+)?\"?(?P<name>[A-Za-z_][\w-]*)\"?\s*[=:]\s*)(?P<value>\S.*)$")
_REDIS = re.compile(
    r"^(?P<head>\s*(?:requirepass|masterauth|sentinel auth-pass \S+)\s+)\S+|(?<=\s)[>#]\S+", re.IGNORECASE
)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"',\]]+", re.IGNORECASE)
_WORDS = ("TOKEN", "CREDENTIAL", "PASSPHRASE", "BEARER")


@dataclass(frozen=True, slots=True)
class ConfigurationBackup:
    """What was written; `left_out` names each secret as `file: name`."""

    path: Path
    files: list[str]
    left_out: list[str]


def back_up_configuration(directory: Path, now: datetime | None = None) -> ConfigurationBackup:
    """Write the configuration of this folder to a new archive, mode 0600.

    Raises OperationFailed when there is none, a file cannot be read, or the archive cannot be written.
    """
    made_at = now or datetime.now(UTC)
    path = directory / f"configuration-{made_at:%Y%m%dT%H%M%S%fZ}.tar.gz"
    files, left_out = dict[str, bytes](), list[str]()
    try:
        for each in _files():
            content, names = without_secrets(each.name, each.read_bytes().decode(errors="surrogateescape"))
            files[str(each)] = content.encode(errors="surrogateescape")
            left_out += [f"{each}: {name}" for name in names]
        if not files:
            raise OperationFailed("there is no configuration here: neither .env nor a folder config")
        with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, data in {**files, LEFT_OUT: "".join(f"{name}\n" for name in left_out).encode()}.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode, member.mtime = len(data), 0o600, int(made_at.timestamp())
                archive.addfile(member, io.BytesIO(data))
    except OSError as error:
        raise OperationFailed(f"cannot back up the configuration: {error.filename}: {error.strerror}") from error
    return ConfigurationBackup(path, list(files), left_out)


def without_secrets(file: str, text: str) -> tuple[str, list[str]]:
    """Return a file's text with MASK in the place of every secret, and the names of those that were left out."""
    lines, names = [], []
    for line in text.splitlines(keepends=True):
        body = line.rstrip("\r\n")
        shown, name = _masked(body, is_redis=file.startswith("redis"))
        lines.append(shown + line[len(body) :])
        if name:
            names.append(name)
    return "".join(lines), list(dict.fromkeys(names))


def _masked(line: str, *, is_redis: bool) -> tuple[str, str | None]:
    if is_redis and not line.lstrip().startswith("#"):
        shown = _REDIS.sub(lambda match: f"{match['head'] or ''}{MASK}" if match["head"] else match[0][0] + MASK, line)
        return shown, line.split(maxsplit=1)[0] if shown != line else None
    found = _SETTING.match(line)
    name = found["name"].upper().replace("-", "_") if found else ""
    if found and _is_secret(name):
        return f"{found['head']}{MASK}", found["name"]
    shown = _URL.sub(lambda match: _address(match[0]), line)
    return shown, (found["name"] if found else "an address") if shown != line else None


def _is_secret(name: str) -> bool:
    """Whether a value is a secret as a whole; addresses lose their secret parts only."""
    if name.endswith(("_FILE", "_FILES")):
        return False
    plain_address = name.endswith(("URL", "URI", "ENDPOINT")) and "WEBHOOK" not in name
    return any(word in name for word in _WORDS) or (is_secret(name) and not plain_address and name != "ACCOUNTS")


def _address(url: str) -> str:
    """Mask user and password of an address; one of the web keeps its path, which in a file of ours is a page."""
    authority = url.partition("://")[2].split("/", 1)[0]
    return mask_url(url) if "@" in authority or "hooks." in authority or "?" in url else url


def _files() -> Iterator[Path]:
    for place in map(Path, PLACES):
        found = [place] if place.is_file() else sorted(place.rglob("*"))
        for each in found:
            if each.is_file() and each.suffix in SUFFIXES and each.stat().st_size <= MAX_BYTES:
                yield each
