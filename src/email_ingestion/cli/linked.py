"""A command's way to Redis: its settings, a connection, and failures as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from email_ingestion.errors import OperationFailed, RedisConnectionError
from email_ingestion.settings import Settings, load_settings
from email_ingestion.stream import Link, open_link


@contextmanager
def linked(name: str) -> Iterator[tuple[Settings, Link]]:
    """The settings and a link to their Redis, named `name` in CLIENT LIST; its failures leave as OperationFailed."""
    settings = load_settings()
    try:
        yield settings, open_link(settings.redis_address, f"email-ingestion-{name}")
    except RedisConnectionError as error:
        raise OperationFailed(
            f"{str(error).rstrip('.')}; see that Redis runs and that REDIS_URL or REDIS_HOST and REDIS_PORT name it"
        ) from error
