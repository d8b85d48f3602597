"""`email-ingestion init`: a folder with settings, alerts, dashboard and, as asked for, units or a compose file.

What names the folder of a checkout names that folder instead, and the units start this program.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from email_ingestion.cli.output import say
from email_ingestion.errors import OperationFailed
from email_ingestion.settings import Settings, load_settings
from email_ingestion.shipped_files import shipped_root

LINKED = {"alerts.yml", "grafana_dashboard.json"}  # with links to the runbooks
CHECKOUT = "/opt/email-ingestion"  # where docs/install.md puts one
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 - from the units
FOLDERS = ("data", "logs", "pids", "backups")
OF_THE_IMAGE = {"Dockerfile", "Dockerfile.dockerignore", "requirements.lock", "healthcheck.py"}  # built in a checkout
BUILT = re.compile(r"^  build:\n(?:    .*\n)+| --build\b", re.MULTILINE)


def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where; the current folder by default.")] = Path(),
    systemd: Annotated[bool, typer.Option("--systemd", help="With the units for systemd.")] = False,
    compose: Annotated[bool, typer.Option("--compose", help="With the compose file for Docker.")] = False,
) -> int:
    """Write commented settings, alerts, the dashboard and examples for Prometheus and Alertmanager into a folder.

    What is there already is left as it is and named. Exit code 2 when the folder cannot be written.

    Examples:
      email-ingestion init
      email-ingestion init /srv/mail --systemd
    """
    chosen = {"config": "config"}
    chosen |= {"deploy/systemd": "deploy/systemd"} if systemd else {}
    chosen |= {"deploy/docker": "deploy/docker"} if compose else {}
    try:
        for folder in FOLDERS:
            (directory / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        for source, target in chosen.items():
            _copy(shipped_root() / source, directory / target, directory.resolve())
        _copy_file(shipped_root() / "config" / ".env.example", directory / ".env", directory.resolve(), mode=0o600)
    except OSError as error:
        raise OperationFailed(f"cannot write {error.filename or directory}: {error.strerror}") from error
    if systemd:
        _announce_units(directory)
    if compose:
        _announce_image(directory)
    typer.echo(f"next: set IMAP_USER and the GOOGLE_ lines in {directory / '.env'}, then, in that folder,")
    typer.echo("`email-ingestion producer --auth-setup`, `email-ingestion doctor`, `email-ingestion start`")
    return 0


def _announce_units(directory: Path) -> None:
    """Say what the units need that a copy of them does not bring."""
    for path in (directory.resolve(), Path(sys.executable)):
        if str(path).startswith(HIDDEN):
            say(f"the units do not see {path} (ProtectHome, PrivateTmp): choose another place, such as /srv or /opt")
    typer.echo(f"the units need a user email-ingestion who owns {', '.join(FOLDERS)} and may read .env; then")
    copied = f"cp {shlex.quote(str(directory))}/deploy/systemd/* /etc/systemd/system/"
    typer.echo(f"`{copied} && systemctl daemon-reload`;")
    typer.echo("once .env is filled in, `systemctl enable --now email-ingestion.target` starts all of them")


def _announce_image(directory: Path) -> None:
    """Say what the compose file takes that is not in this folder."""
    folder = directory / "deploy/docker"
    typer.echo(
        "the compose file takes an image, in a checkout `docker build -f deploy/docker/Dockerfile -t email-ingestion .`"
    )
    typer.echo(
        f"and settings from {folder / '.env'}: a copy of sandbox.env beside it for a trial, or of {directory / '.env'}"
        " with REDIS_PASSWORD and GRAFANA_PASSWORD"
    )
    typer.echo(f"then, in {folder}, `docker compose up -d --wait`, or for the trial what sandbox.env begins with")


def _copy(source: Path, target: Path, directory: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.name not in OF_THE_IMAGE:
            _copy_file(path, target / path.relative_to(source), directory)


def _copy_file(source: Path, target: Path, directory: Path, mode: int = 0o644) -> None:
    """Copy a file that is not there; others may read it, for Prometheus and Redis have users of their own."""
    for folder in reversed(target.parents):
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o755)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        say(f"{target} is there already: left as it is")
        return
    content = source.read_bytes()
    if source.name in LINKED:
        default = str(Settings.model_fields["runbook_base_url"].default)
        content = content.replace(default.encode(), load_settings().runbook_base_url.encode())
    if source.name in {"compose.yaml", "sandbox.env"}:
        content = BUILT.sub("", content.decode()).encode()
    if source.suffix in {".service", ".conf"}:
        content = _placed(content.decode(), directory).encode(errors="surrogateescape")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    target.chmod(mode)  # whatever the umask is
    typer.echo(str(target))


def _placed(text: str, directory: Path) -> str:
    """Return a unit, or the rule of logrotate, for this folder and this program."""
    if str(directory) == CHECKOUT and Path(CHECKOUT, "producer.py").exists():
        return text
    old, new = f"ExecStart={CHECKOUT}/.venv/bin/python ", f"ExecStart={_word(sys.executable)} -m email_ingestion "
    text = text.replace(f"{old}-m email_ingestion ", new)
    text = re.sub(re.escape(old) + r"(?:scripts/)?(\w+)\.py", lambda found: new + found[1], text)
    text = text.replace(f"WorkingDirectory={CHECKOUT}\n", f"WorkingDirectory={str(directory).replace('%', '%%')}\n")
    text = text.replace(f"\n{CHECKOUT}/logs/*.log {{", f'\n"{directory}/logs/*.log" {{')
    return re.sub(rf"{CHECKOUT}(\S*)", lambda found: _word(f"{directory}{found[1]}"), text)


def _word(path: str) -> str:
    """Return the path as one word of a unit."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return text if re.fullmatch(r"[\w./@:+%$-]+", text) else f'"{text}"'
