"""`email-ingestion redis-cli`: Redis's own client, logged in as the service; no process list shows the password."""

from __future__ import annotations

import subprocess
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

from email_ingestion.errors import OperationFailed, RedisConnectionError
from email_ingestion.settings import environment, load_settings
from email_ingestion.stream import server_url

CONTEXT = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def redis_cli(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD]...", help="What redis-cli is given.", show_default=False)
    ] = None,
) -> int:
    """Speak to the Redis of the settings with redis-cli, as the user the service is. Look, do not write.

    Exit code 0 when Redis did it, 1 when it refused or does not answer, 2 when there is no redis-cli here.

    Examples:
      email-ingestion redis-cli XLEN '{email_ingestion}:stream'
      email-ingestion redis-cli XPENDING '{email_ingestion}:stream' email_processor_group
      email-ingestion redis-cli --scan --pattern '{email_ingestion}*'
    """
    address = load_settings().redis_address
    try:
        where, secret = options(server_url(address))
    except RedisConnectionError as error:
        raise OperationFailed(f"{str(error).rstrip('.')}; REDIS_SENTINELS names whom to ask") from error
    where += ["-c"] if address.mode == "cluster" else []
    variables = {name: value for name, value in environment().items() if name != "REDISCLI_AUTH"} | secret
    command = ["redis-cli", "-e", *where, *(words or [])]
    try:
        return subprocess.run(command, env=variables, check=False).returncode
    except FileNotFoundError as error:
        raise OperationFailed("there is no redis-cli here: install it (Debian: apt-get install redis-tools)") from error


def options(address: str) -> tuple[list[str], dict[str, str]]:
    """The options of redis-cli for a redis:// URL, and its environment with the password."""
    url = urlsplit(address)
    where = ["-h", url.hostname or "localhost", "-p", str(url.port or 6379)]
    if url.path.strip("/"):
        where += ["-n", url.path.strip("/")]
    if url.scheme == "rediss":
        where.append("--tls")
    if url.username:
        where += ["--user", unquote(url.username)]
    return where, {"REDISCLI_AUTH": unquote(url.password)} if url.password else {}
