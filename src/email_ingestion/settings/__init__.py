"""Every setting of the system: schema, sources, and the check of their names.

Order: command line > environment > the running sandbox's profile > `.env` > `config/settings.toml` > defaults.
`<NAME>_FILE` reads the value of NAME from a file. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from email_ingestion.errors import ConfigurationError
from email_ingestion.settings.definitions import Account, Settings, is_loopback, start_of
from email_ingestion.settings.masking import mask_url
from email_ingestion.settings.names import explain_validation, refuse_unknown
from email_ingestion.settings.redis_address import Mode, Node, RedisAddress
from email_ingestion.settings.sources import (
    DOTENV,
    SANDBOX_PROFILE,
    TOML,
    environment,
    names_in_use,
    notify_socket,
    toml_has_secrets,
    trust,
    value_files,
)

__all__ = [
    "SANDBOX_PROFILE",
    "Account",
    "Mode",
    "Node",
    "RedisAddress",
    "Settings",
    "environment",
    "is_loopback",
    "load_settings",
    "log_dir",
    "mask_url",
    "notify_socket",
    "secret_files",
    "settings_files",
    "start_of",
]


def load_settings(**overrides: Any) -> Settings:
    """Return the effective settings; `overrides` come from the command line.

    Raises ConfigurationError with one sentence naming the setting, for a wrong value and for an unknown name.
    """
    try:
        refuse_unknown(names_in_use(Settings), {name.upper() for name in Settings.model_fields})
        settings = Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError(explain_validation(error)) from error
    except OSError as error:
        raise ConfigurationError(f"cannot read {error.filename}: {error.strerror}{_remedy(error)}") from error
    except ValueError as error:  # a broken TOML file
        raise ConfigurationError(f"{TOML}: {error}") from error
    if settings.ssl_cert_file:
        trust(settings.ssl_cert_file)
    return settings


def _remedy(error: OSError) -> str:
    """Say who could read it: a folder that the user may not enter, or the file."""
    if not isinstance(error, PermissionError) or not isinstance(error.filename, str) or not hasattr(os, "geteuid"):
        return ""
    path = Path(error.filename)
    effective = os.access in os.supports_effective_ids
    folders = reversed(path.parents)
    barred = next((each for each in folders if not os.access(each, os.X_OK, effective_ids=effective)), path)
    try:
        owner = barred.stat()
    except OSError:
        return ""
    return (
        f"; user {os.geteuid()} may not open {barred}: give the command as its owner, user {owner.st_uid},"
        f" or in its group, {owner.st_gid}"
    )


def settings_files() -> list[Path]:
    """Return the files that settings are read from, whether or not they exist."""
    return [DOTENV, SANDBOX_PROFILE, TOML, *value_files(Settings)]


def secret_files(settings: Settings) -> list[Path]:
    """Return the files that may hold passwords, keys and tokens, whether or not they exist."""
    files = [DOTENV, settings.ops_token_file, settings.ops_read_token_file, *([TOML] if toml_has_secrets() else ())]
    for account in settings.all_accounts:
        files += [account.google_token_file, account.google_service_account_file]
    return list(dict.fromkeys(path for path in (*files, *value_files(Settings)) if path))


class _LogDir(BaseSettings):
    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    log_dir: Path = Settings.model_fields["log_dir"].default

    @classmethod
    def settings_customise_sources(cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any) -> Any:
        return Settings.settings_customise_sources(settings_cls, *sources, **named)


def log_dir() -> Path:
    """Return LOG_DIR, whatever is wrong with the other settings."""
    try:
        return _LogDir().log_dir
    except (ValueError, OSError, ConfigurationError):  # a broken file
        return Path(Settings.model_fields["log_dir"].default)
