"""The sources of settings: the environment, `.env` files and the TOML file. Nothing else reads the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, TomlConfigSettingsSource

from email_ingestion.errors import ConfigurationError

DOTENV = Path(".env")
TOML = Path("config/settings.toml")
TRUST = "SSL_CERT_FILE"
_set_here: set[str] = set()  # variables that were not in the environment at the start of this process
# Written by `start.sh --sandbox`, removed by `stop.sh`: while the sandbox runs, every command uses it.
SANDBOX_PROFILE = Path("data/sandbox.env")


class _PlainValues:
    """Values as a person writes them in an environment: no JSON for lists, `<NAME>_FILE` for secrets."""

    env_vars: Any
    settings_cls: type[BaseSettings]

    def prepare_field_value(self, field_name: str, _field: object, value: Any, _complex: bool) -> Any:
        if field_name in {"accounts", "routes"}:
            return None  # tables of the TOML file; an environment variable of that name is not ours
        file_name = f"{field_name}_file"
        path = self.env_vars.get(file_name) if file_name not in self.settings_cls.model_fields else None
        if not path or value is not None:
            return value
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise ConfigurationError(f"{field_name.upper()}_FILE: cannot read {path}: {error.strerror}") from error


class PlainEnvSource(_PlainValues, EnvSettingsSource):
    """The environment of this process."""


class PlainDotEnvSource(_PlainValues, DotEnvSettingsSource):
    """The `.env` files."""


def names_in_use(settings_cls: type[BaseSettings]) -> dict[str, str]:
    """Map every name that is set, in upper case, to the place that wins."""
    places: dict[str, str] = {}
    if TOML.exists():
        places |= {str(name).upper(): str(TOML) for name in TomlConfigSettingsSource(settings_cls, TOML).toml_data}
    for path in (DOTENV, SANDBOX_PROFILE):
        if path.exists():
            source = DotEnvSettingsSource(settings_cls, env_file=path)
            places |= {name.upper(): str(path) for name in source.env_vars}
    return places | dict.fromkeys(map(str.upper, environment()), "the environment")


def value_files(settings_cls: type[BaseSettings]) -> list[Path]:
    """Return the files that `<NAME>_FILE` names, in the environment and in the `.env` files."""
    variables: dict[str, str | None] = {}
    for path in (DOTENV, SANDBOX_PROFILE):
        if path.exists():
            variables |= DotEnvSettingsSource(settings_cls, env_file=path).env_vars
    variables |= {name.lower(): value for name, value in os.environ.items()}
    names = (f"{field}_file" for field in settings_cls.model_fields)
    return [Path(value) for name in names if (value := variables.get(name))]


def toml_has_secrets() -> bool:
    """Return whether the TOML file sets a password, a key or a secret."""
    try:
        return bool(re.search(r"^\s*\w*(password|secret|key)\w*\s*=", TOML.read_text(), re.IGNORECASE | re.MULTILINE))
    except (OSError, UnicodeDecodeError):
        return False


def origins(settings_cls: type[BaseSettings]) -> dict[str, str]:
    """Map every name that is set to something, in upper case, to the place that wins."""
    return {name: place for name, place in names_in_use(settings_cls).items() if os.environ.get(name) != ""}


def trust(authorities: Path) -> None:
    """Have OpenSSL trust the authorities of this file, and no others. Raises ConfigurationError.

    It reads a variable of that name, so one of the environment needs nothing more.
    """
    if not os.access(authorities, os.R_OK):
        raise ConfigurationError(f"{TRUST}: cannot read {authorities}")
    if TRUST not in os.environ:
        os.environ[TRUST] = str(authorities)
        _set_here.add(TRUST)


def environment() -> dict[str, str]:
    """Return a copy of the environment this process was given, for a child process: it reads `.env` itself."""
    return {name: value for name, value in os.environ.items() if name not in _set_here}


def notify_socket() -> str | None:
    """Return the path of the socket on which systemd waits for `READY=1`, if there is one."""
    return os.environ.get("NOTIFY_SOCKET")
