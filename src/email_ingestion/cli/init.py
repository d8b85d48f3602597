"""`email-ingestion init`: a folder with settings, alerts, dashboard and, as asked for, units or a compose file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from email_ingestion.cli.output import say
from email_ingestion.errors import OperationFailed
from email_ingestion.settings import Settings, load_settings
from email_ingestion.shipped_files import shipped_root

LINKED = {"alerts.yml", "grafana_dashboard.json"}  # with links to the runbooks
FOLDERS = ("data", "logs", "pids", "backups")


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
            _copy(shipped_root() / source, directory / target)
        _copy_file(shipped_root() / "config" / ".env.example", directory / ".env", mode=0o600)
    except OSError as error:
        raise OperationFailed(f"cannot write {error.filename or directory}: {error.strerror}") from error
    typer.echo(f"next: set IMAP_USER and the GOOGLE_ lines in {directory / '.env'}, then, in that folder,")
    typer.echo("`email-ingestion producer --auth-setup`, `email-ingestion doctor`, `email-ingestion start`")
    return 0


def _copy(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            _copy_file(path, target / path.relative_to(source))


def _copy_file(source: Path, target: Path, mode: int = 0o644) -> None:
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
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    target.chmod(mode)  # whatever the umask is
    typer.echo(str(target))
