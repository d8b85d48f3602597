"""A command's way to Redis; what fails on it ends as every error of Redis does, in exits.py."""

from __future__ import annotations

from email_ingestion.settings import Settings, load_settings
from email_ingestion.stream import RedisLink, open_link


def linked(name: str) -> tuple[Settings, RedisLink]:
    """The settings and a link to their Redis, named `name` in CLIENT LIST."""
    settings = load_settings()
    return settings, open_link(settings.redis_address, f"email-ingestion-{name}")
