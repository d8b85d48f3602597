"""Every setting with its type, unit and default."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from email_ingestion.errors import ConfigurationError
from email_ingestion.records import ChangeKind
from email_ingestion.settings.names import explain_validation
from email_ingestion.settings.redis_address import Mode, RedisAddress, parse_node
from email_ingestion.settings.sources import DOTENV, SANDBOX_PROFILE, TOML, PlainDotEnvSource, PlainEnvSource

MIB = 1024 * 1024
Start = Literal["all", "now"] | date
Grant = Literal["refresh_token", "client_credentials"]


_EVENT_FIELDS = ("webhook_events", "stream_events", "ndjson_events")
_ALL_EVENTS = frozenset({"all", "*", "true", "yes", "on", "1"})
_NO_EVENTS = frozenset({"none", "false", "no", "off", "0"})

# A name in double quotes, or up to the next comma that has no backslash.
_LISTED_NAME = re.compile(r'\s*("(?:[^"]|"")*"(?=\s*(?:,|$))|(?:\\,|[^,])+)')


class Account(BaseModel):
    """One mailbox owner: the `IMAP_…` and `GOOGLE_…` settings, or one `[[accounts]]` table over them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    imap_host: str
    imap_port: int = Field(ge=1, le=65535)
    imap_tls: bool
    imap_user: str
    imap_auth: Literal["oauth2", "password"]
    imap_password: str | None
    imap_mailbox: str
    imap_exclude_labels: tuple[str, ...]
    imap_start: Start
    google_client_id: str | None
    google_client_secret: str | None
    google_token_file: Path
    google_token_uri: str
    google_auth_uri: str
    google_service_account_file: Path | None
    oauth2_grant: Grant
    oauth2_scope: str
    oauth2_consent_days: float | None
    token_encryption_key: str | None
    retention_days: int | None = Field(default=None, ge=1, le=36_500)

    @field_validator("google_token_uri", "google_auth_uri")
    @classmethod
    def _secrets_need_tls(cls, value: str) -> str:
        return _require_tls(value)

    @model_validator(mode="after")
    def _plaintext_only_on_loopback(self) -> Account:
        _refuse_plaintext(self)
        return self

    @property
    def by_mailbox(self) -> tuple[Account, ...]:
        """Return one copy of the account for each mailbox that it reads; call it once, for names may have commas."""
        names = (_unquoted(name.strip()) for name in _LISTED_NAME.findall(self.imap_mailbox))
        return tuple(self.model_copy(update={"imap_mailbox": name}) for name in names if name)

    def other_mailboxes(self, one: Account) -> tuple[str, ...]:
        """Return what it reads beside the mailbox of `one`, which is of `by_mailbox`."""
        return tuple(each.imap_mailbox for each in self.by_mailbox if each.imap_mailbox != one.imap_mailbox)


class Settings(BaseSettings):
    """The effective settings of one process."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    redis_url: str | None = Field(default=None, description="redis://… or rediss://…; wins over REDIS_HOST")
    redis_host: str = Field(default="localhost", description="host name of Redis")
    redis_port: int = Field(default=6379, ge=1, le=65535, description="TCP port of Redis")
    redis_username: str | None = Field(default=None, description="ACL user of Redis")
    redis_password: str | None = Field(default=None, description="password of Redis")
    redis_tls: bool = Field(default=False, description="TLS to Redis")
    redis_mode: Mode = Field(default="standalone", description="standalone, sentinel or cluster")
    redis_sentinels: tuple[str, ...] = Field(
        default=(), description="host:port of the sentinels, comma-separated, with REDIS_MODE=sentinel"
    )
    redis_sentinel_master: str = Field(default="mymaster", description="what the sentinels call the Redis")
    redis_sentinel_password: str | None = Field(default=None, description="password of the sentinels themselves")
    redis_cluster_nodes: tuple[str, ...] = Field(
        default=(),
        description="host:port of some nodes, comma-separated, with REDIS_MODE=cluster; else REDIS_HOST and REDIS_PORT",
    )
    redis_partitions: int = Field(
        default=1, ge=1, le=64, description="streams the accounts are spread over; fixed by the first process"
    )

    imap_host: str = Field(default="imap.gmail.com", description="IMAP server")
    imap_port: int = Field(default=993, ge=1, le=65535, description="TCP port of the IMAP server")
    imap_tls: bool = Field(default=True, description="implicit TLS; false only for a server on this machine")
    ssl_cert_file: Path | None = Field(
        default=None,
        description="PEM file of the authorities that are trusted in the place of the system's, by TLS with any server",
    )
    imap_user: str = Field(default="", description="the account's address")
    imap_auth: Literal["oauth2", "password"] = Field(
        default="oauth2", description="oauth2, or password for app passwords"
    )
    imap_password: str | None = Field(default=None, description="password, with IMAP_AUTH=password")
    imap_mailbox: str = Field(
        default="auto",
        description=r"auto: the \All mailbox on Gmail, else INBOX; or up to three, by name or like \Junk; \, in a name",
    )
    imap_exclude_labels: tuple[str, ...] = Field(
        default=("\\Draft", "\\Sent"),
        description="messages with one of these Gmail labels are left out, comma-separated",
    )
    imap_track_labels: bool = Field(
        default=False, description="true: Gmail labels and flags changed later change in the record"
    )
    imap_start: Start = Field(
        default="all", description="all, now, or a date like 2026-01-31: what the first run takes"
    )
    imap_poll_seconds: float = Field(default=60, gt=0, description="seconds; the safety net under IDLE")
    imap_idle_seconds: float = Field(
        default=240, gt=0, le=1740, description="seconds an IDLE lasts before it is renewed"
    )
    imap_timeout_seconds: float = Field(
        default=30, gt=0, description="seconds without a byte before a connection is dead"
    )
    imap_session_seconds: float = Field(default=3300, gt=0, description="seconds after which a connection is renewed")
    imap_message_max_bytes: int = Field(
        default=157_286_400, gt=0, description="bytes of a message above which it is left out; Gmail takes up to 50 MB"
    )
    imap_bytes_per_day: int = Field(default=2_400_000_000, gt=0, description="bytes downloaded per account in 24 h")

    google_client_id: str | None = Field(default=None, description="OAuth2 client of your own Google Cloud project")
    google_client_secret: str | None = Field(default=None, description="its secret")
    google_web_client_id: str | None = Field(
        default=None, description="OAuth2 client of type Web, with which the web pages authorize in the browser"
    )
    google_web_client_secret: str | None = Field(default=None, description="its secret")
    google_token_file: Path = Field(
        default=Path("data/token.json"), description="where the OAuth2 token is kept, mode 0600"
    )
    google_token_uri: str = Field(default="https://oauth2.googleapis.com/token", description="OAuth2 token endpoint")
    google_auth_uri: str = Field(
        default="https://accounts.google.com/o/oauth2/auth", description="OAuth2 authorization endpoint"
    )
    google_service_account_file: Path | None = Field(
        default=None, description="service account key with domain-wide delegation, instead of a consent"
    )

    oauth2_grant: Grant = Field(
        default="refresh_token",
        description="refresh_token: a person's consent; client_credentials: the application's own rights",
    )
    oauth2_scope: str = Field(
        default="https://mail.google.com/", description="scopes asked for, separated by blanks; docs/outlook.md"
    )
    oauth2_consent_days: float | None = Field(
        default=None,
        gt=0,
        description="days a consent lasts where the token endpoint does not say: 7 for an app in Testing status",
    )
    token_encryption_key: str | None = Field(
        default=None, description="Fernet keys for token files, comma-separated: the first encrypts, all decrypt"
    )

    worker_batch_size: int = Field(default=100, ge=1, le=1000, description="messages taken at once")
    worker_lease_seconds: float = Field(default=60, gt=0, description="seconds until another worker takes over")
    worker_max_retries: int = Field(default=5, ge=0, description="attempts after the first, then dead letter")
    worker_handle_timeout_seconds: float = Field(
        default=60, gt=0, description="seconds after which the parser of a message is ended"
    )
    sink_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        description="seconds a sink may take over one call, below WORKER_LEASE_SECONDS; default half of that",
    )
    worker_threads: int = Field(default=8, ge=1, description="threads for sinks that wait on the network")

    cb_fail_max: int = Field(default=5, ge=1, description="consecutive failures that open a circuit breaker")
    cb_recovery_timeout: float = Field(default=30, gt=0, description="seconds a breaker stays open before a probe")
    cb_success_threshold: int = Field(default=2, ge=1, description="successful probes that close it")

    stream_max_depth: int = Field(default=50_000, ge=1, description="messages in the stream above which fetching stops")
    stream_max_bytes: int = Field(
        default=256 * MIB, ge=MIB, description="bytes in the stream above which fetching stops"
    )
    blob_url: str = Field(
        default="file:data/blobs", description="store of large contents: file:DIR or s3://bucket/prefix"
    )
    blob_threshold_bytes: int = Field(default=262_144, ge=0, description="bytes above which a content goes there")

    database_url: str = Field(
        default="sqlite:///data/email_ingestion.db", description="sqlite:///FILE or postgresql+psycopg://…"
    )
    sinks: tuple[str, ...] = Field(
        default=("database",),
        description="where mail goes, comma-separated: database (always, it is the ledger), webhook, files:DIR,"
        " maildir:DIR, stream:KEY, ndjson, ndjson:FILE, python:module:function",
    )
    webhook_url: str | None = Field(default=None, description="http(s) address that the sink webhook posts to")
    webhook_secret: str | None = Field(
        default=None, description="whsec_… that signs each post; several, comma-separated, while you rotate it"
    )
    webhook_erased: bool = Field(
        default=False, description="true: the webhook is told, as email.erased, when mail that it got is erased"
    )
    webhook_events: tuple[str, ...] = Field(
        default=(),
        description="changes that the webhook is told of, comma-separated: relabelled, flagged, trashed, deleted,"
        " restored, reparsed, erased, or all; docs/changes.md",
    )
    webhook_envelope: Literal["standard", "cloudevents"] = Field(
        default="standard", description="form of what is posted: standard, or cloudevents (1.0, structured mode)"
    )
    stream_events: tuple[str, ...] = Field(
        default=(), description="changes that the sink stream is told of, as for WEBHOOK_EVENTS"
    )
    ndjson_events: tuple[str, ...] = Field(
        default=(), description="changes that the sink ndjson is told of, as for WEBHOOK_EVENTS"
    )
    webhook_digest: bool = Field(
        default=False, description="true: the webhook offers GET …/digest, and is asked each RECONCILE_SINKS_SECONDS"
    )
    webhook_timeout_seconds: float = Field(default=10, gt=0, description="seconds a post may take, all in all")

    reconcile_seconds: float = Field(default=3600, gt=0, description="seconds between comparisons of server and ledger")
    reconcile_sinks_seconds: float = Field(
        default=3600, gt=0, description="seconds between comparisons of each sink with what it was given"
    )
    blob_verify_seconds: float = Field(
        default=86_400, gt=0, description="seconds between two scrubs of all stored bytes, which the producer does"
    )
    canary_seconds: float | None = Field(
        default=None, ge=1, description="seconds between two trial messages through stream, worker and database; off"
    )
    stop_seconds: float = Field(default=30, gt=0, description="seconds a stopping process may take to finish its work")

    ops_host: str = Field(default="127.0.0.1", description="address the HTTP endpoints listen on")
    ops_port: int | None = Field(default=None, ge=0, le=65535, description="default 8080 producer, 8080+k worker k")
    metrics_port: int | None = Field(default=None, ge=0, le=65535, description="default 9090 producer, 9090+k worker k")
    ops_token_file: Path = Field(
        default=Path("data/ops-token"), description="token for POST /admin, made at first start"
    )
    ops_allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="further names the HTTP endpoints answer under, comma-separated: mail.example.com, *.svc.local",
    )
    ops_read_token_file: Path | None = Field(
        default=None, description="token that all but /health and /ready then need, made at first start; default none"
    )

    web_public_url: str | None = Field(
        default=None,
        description="address browsers reach the web pages under, where a proxy stands before them; without a path",
    )
    web_proxy_secret: str | None = Field(
        default=None,
        min_length=16,
        description="what an authenticating proxy sends as X-Proxy-Secret: the web pages believe its user header",
    )
    web_proxy_user_header: str = Field(
        default="X-Forwarded-User", pattern=r"^[A-Za-z0-9-]+$", description="header in which that proxy names the user"
    )
    web_proxy_operators: tuple[str, ...] = Field(
        default=(), description="users of that proxy who may give orders, comma-separated; the others only read"
    )
    web_host: str = Field(default="127.0.0.1", description="address that `email-ingestion web` listens on")
    web_port: int = Field(default=8070, ge=0, le=65535, description="its TCP port; 0: one that is free")
    web_allowed_hosts: tuple[str, ...] = Field(
        default=(), description="further names it answers under, comma-separated: mail.example.com, *.svc.local"
    )
    web_tls_certificate_file: Path | None = Field(
        default=None, description="PEM file of its certificate and what that was signed with; default no TLS"
    )
    web_tls_key_file: Path | None = Field(default=None, description="PEM file of the certificate's key")
    web_requests_per_minute: int = Field(
        default=600, ge=1, description="requests a minute that each token of the read API has"
    )

    alert_channels: tuple[str, ...] = Field(
        default=(), description="where it tells of trouble, comma-separated: email, slack, pagerduty, apprise URLs"
    )
    alert_email_recipients: tuple[str, ...] = Field(
        default=(), description="addresses it tells through ALERT_SMTP_URL, comma-separated"
    )
    alert_smtp_url: str = Field(
        default="smtp://localhost", description="mail server for them: smtp://user:password@host:587 or smtps://…"
    )
    pagerduty_routing_key: str | None = Field(
        default=None, description="integration key (Events API v2) of the PagerDuty service it tells"
    )
    pagerduty_events_url: str = Field(
        default="https://events.pagerduty.com/v2/enqueue",
        description="where PagerDuty takes events; in the EU events.eu.…",
    )
    alertmanager_url: str | None = Field(
        default=None, description="http(s) address of an Alertmanager, which `alert list` and `alert silence` ask too"
    )
    grafana_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+$",
        description="http(s) address at which browsers reach Grafana, or its dashboard of ours; the pages link there",
    )
    alert_seconds: float = Field(default=300, gt=0, description="seconds between two looks of the built-in monitor")
    slack_alert_webhook: str | None = Field(default=None, description="https://hooks.slack.com/services/… it posts to")
    runbook_base_url: str = Field(
        default="http://localhost:8080/runbooks",
        pattern=r"^https?://\S+[^/\s]$",
        description="where the links of alerts lead, without the page's name; default the producer's own pages",
    )

    incident_from_alerts: tuple[str, ...] = Field(
        default=(), description="priorities of built-in alerts that open an incident, comma-separated: P1,P2"
    )
    incident_webhook: str | None = Field(
        default=None, description="https address that `incident open` posts to, as GitHub takes an issue"
    )
    incident_webhook_token: str | None = Field(default=None, description="bearer token it sends with that")

    otel_exporter_otlp_endpoint: str | None = Field(
        default=None, description="http(s) address that OpenTelemetry spans are sent to; needs the extra otel"
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least level written")
    log_format: Literal["json", "console"] | None = Field(
        default=None, description="what stderr shows; default console on a terminal, else json (the files are JSON)"
    )
    log_dir: Path = Field(default=Path("logs"), description="directory of the log files")
    pid_dir: Path = Field(default=Path("pids"), description="directory of the PID files")
    backup_dir: Path = Field(default=Path("backups"), description="directory of the backups")
    retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="days after its arrival at which mail is erased, each night, unless its route says otherwise; off",
    )
    changes_keep_days: int = Field(
        default=30, ge=1, le=36_500, description="days that the change feed goes back; docs/changes.md"
    )
    erasure_dir: Path = Field(
        default=Path("data/erasure"), description="directory of the tombstones and reports of what was erased"
    )

    accounts: tuple[dict[str, Any], ...] = Field(default=(), description="[[accounts]] in config/settings.toml only")
    routes: tuple[dict[str, Any], ...] = Field(default=(), description="[[routes]] in config/settings.toml only")

    @field_validator(
        *("imap_exclude_labels", "sinks", "ops_allowed_hosts", "alert_channels", "alert_email_recipients"),
        *("incident_from_alerts", "web_allowed_hosts", "web_proxy_operators"),
        *("redis_sentinels", "redis_cluster_nodes", *_EVENT_FIELDS),
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("web_public_url")
    @classmethod
    def _origin_only(cls, value: str | None) -> str | None:
        if value is None:
            return None
        address = urlsplit(value.strip().rstrip("/"))
        further = address.path or address.query or address.fragment or "@" in address.netloc
        if address.scheme not in {"http", "https"} or not address.hostname or further:
            message = "takes https://name or https://name:port without a path: the pages stand at the root of a host"
            raise ValueError(message)
        return f"{address.scheme}://{address.netloc.lower()}"

    @field_validator("sinks")
    @classmethod
    def _database_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Put the database first: it proves deliveries, and records pending deliveries to the other sinks."""
        return tuple(dict.fromkeys(("database", *value)))

    @field_validator(*_EVENT_FIELDS)
    @classmethod
    def _kinds_of_changes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Take kinds with or without `email.`, all of them but `born`, which the mail itself tells, or none."""
        known = [kind.value for kind in ChangeKind]
        kinds: set[str] = set()
        for each in value:
            kind = each.lower().removeprefix("email.")
            if kind in _ALL_EVENTS:
                kinds |= {*known} - {"born"}
            elif kind in known:
                kinds.add(kind)
            elif kind != "received" and (kind not in _NO_EVENTS or len(value) > 1):  # mail itself is always told
                message = f"takes all, or some of {', '.join(known)}, not {each}"
                raise ValueError(message)
        return tuple(kind for kind in known if kind in kinds)

    @field_validator("incident_from_alerts")
    @classmethod
    def _priorities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [each for each in value if each not in {"P1", "P2", "P3", "P4"}]:
            message = f"takes P1, P2, P3 and P4, not {wrong[0]}"
            raise ValueError(message)
        return value

    @field_validator("redis_port", mode="before")
    @classmethod
    def _service_link(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("tcp://"):
            message = "is a Kubernetes service link; set enableServiceLinks: false in the pod, or REDIS_URL"
            raise ValueError(message)
        return value

    @field_validator("redis_sentinels", "redis_cluster_nodes")
    @classmethod
    def _nodes_are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_node(text)
        return value

    @model_validator(mode="after")
    def _nodes_fit_the_mode(self) -> Settings:
        if self.redis_mode == "sentinel" and not self.redis_sentinels:
            message = "REDIS_MODE=sentinel needs REDIS_SENTINELS=host:26379,host:26379,…"
            raise ValueError(message)
        for mode, nodes in (("sentinel", self.redis_sentinels), ("cluster", self.redis_cluster_nodes)):
            if nodes and self.redis_mode != mode:
                name = "REDIS_SENTINELS" if mode == "sentinel" else "REDIS_CLUSTER_NODES"
                message = f"{name} is set, but REDIS_MODE is {self.redis_mode}: set REDIS_MODE={mode}"
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _sink_timeout_below_lease(self) -> Settings:
        if self.sink_timeout >= self.worker_lease_seconds:
            message = (
                f"SINK_TIMEOUT_SECONDS={self.sink_timeout:g} must be below WORKER_LEASE_SECONDS, "
                f"which is {self.worker_lease_seconds:g}: else another worker starts a call beside a running one"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Settings:
        if (self.web_tls_certificate_file is None) != (self.web_tls_key_file is None):
            message = "WEB_TLS_CERTIFICATE_FILE and WEB_TLS_KEY_FILE go together"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _plaintext_only_on_loopback(self) -> Settings:
        _refuse_plaintext(self)
        return self

    @field_validator("google_token_uri", "google_auth_uri")
    @classmethod
    def _secrets_need_tls(cls, value: str) -> str:
        return _require_tls(value)

    def changes_told(self, sink: str) -> tuple[str, ...]:
        """Return the kinds of changes that a sink of SINKS is told of."""
        kinds = {"webhook": self.webhook_events, "stream": self.stream_events, "ndjson": self.ndjson_events}
        return kinds.get(sink.partition(":")[0], ())

    @cached_property
    def all_accounts(self) -> tuple[Account, ...]:
        """The accounts to read: the `[[accounts]]` tables over the general settings, or the general settings alone.

        Raises ConfigurationError for a table that is wrong.
        """
        found = tuple(self.account_of(table, f"[[accounts]] in {TOML}") for table in self.accounts or ({},))
        names = [account.name for account in found]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"[[accounts]] in {TOML}: every account needs a name of its own")
        return found

    def account_of(self, table: Mapping[str, Any], where: str) -> Account:
        """Return the account that a table makes over the general settings.

        Raises ConfigurationError, which says `where` the table stands.
        """
        base = {name: getattr(self, name) for name in Account.model_fields if name != "name"}
        try:
            return Account(**{**base, **table})
        except ValidationError as error:
            raise ConfigurationError(f"{where}: {explain_validation(error)}") from error

    @property
    def sink_timeout(self) -> float:
        """The seconds that one call of a sink may take."""
        return self.worker_lease_seconds / 2 if self.sink_timeout_seconds is None else self.sink_timeout_seconds

    @property
    def origin(self) -> str:
        """The names of the settings files that exist, or `the environment`."""
        return ", ".join(str(path) for path in (SANDBOX_PROFILE, DOTENV, TOML) if path.exists()) or "the environment"

    @property
    def redis_address(self) -> RedisAddress:
        """The address of Redis, from REDIS_URL or from the other REDIS_ settings."""
        nodes = {"sentinel": self.redis_sentinels, "cluster": self.redis_cluster_nodes}.get(self.redis_mode, ())
        return RedisAddress(
            self._redis_url,
            self.redis_partitions,
            self.redis_mode,
            tuple(map(parse_node, nodes)),
            self.redis_sentinel_master,
            self.redis_sentinel_password,
        )

    @property
    def _redis_url(self) -> str:
        if self.redis_url:
            return self.redis_url
        user = quote(self.redis_username or "", safe="")
        secret = f"{user}:{quote(self.redis_password, safe='')}@" if self.redis_password else ""
        host, port = (
            parse_node(self.redis_cluster_nodes[0]) if self.redis_cluster_nodes else (self.redis_host, self.redis_port)
        )
        at = f"[{host}]" if ":" in host else host
        return f"{'rediss' if self.redis_tls else 'redis'}://{secret}{at}:{port}/0"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in the order that the package's docstring names."""
        del env_settings, dotenv_settings, file_secret_settings
        return (
            init_settings,
            PlainEnvSource(settings_cls),
            PlainDotEnvSource(settings_cls, env_file=(DOTENV, SANDBOX_PROFILE)),
            TomlConfigSettingsSource(settings_cls, TOML),
        )


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can only be this machine."""
    name = host.rstrip(".").casefold()
    try:
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refuse_plaintext(account: Account | Settings) -> None:
    if not account.imap_tls and not is_loopback(account.imap_host):
        message = f"IMAP_TLS=false is for a server on this machine only, not for {account.imap_host}"
        raise ValueError(message)


def _unquoted(name: str) -> str:
    if len(name) > 1 and name[0] == name[-1] == '"':
        return name[1:-1].replace('""', '"')
    return name.replace("\\,", ",")


def _require_tls(uri: str) -> str:
    address = urlsplit(uri)
    if address.scheme != "https" and not (address.scheme == "http" and is_loopback(address.hostname or "")):
        message = "must be https://: what is sent there opens the mailbox"
        raise ValueError(message)
    return uri


def start_of(account: Account) -> datetime | None:
    """Return the INTERNALDATE before which messages are skipped, or None."""
    if isinstance(account.imap_start, date):
        return datetime(account.imap_start.year, account.imap_start.month, account.imap_start.day, tzinfo=UTC)
    return None
