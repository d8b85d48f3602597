"""Settings: the order of their sources, secrets from files, and the example that must stay true."""

from __future__ import annotations

import re
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest

from email_ingestion.errors import ConfigurationError
from email_ingestion.settings import Settings, load_settings
from email_ingestion.settings.plaintext import plaintext_connections

EXAMPLE = Path(__file__).resolve().parents[2] / "config" / ".env.example"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an environment without any setting."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def test_the_order_is_command_line_environment_sandbox_dotenv_toml_default(monkeypatch: pytest.MonkeyPatch):
    assert load_settings().redis_host == "localhost"
    _write("config/settings.toml", 'redis_host = "toml"\n')
    assert load_settings().redis_host == "toml"
    _write(".env", "REDIS_HOST=dotenv\n")
    assert load_settings().redis_host == "dotenv"
    _write("data/sandbox.env", "REDIS_HOST=sandbox\n")
    assert load_settings().redis_host == "sandbox"
    monkeypatch.setenv("REDIS_HOST", "environment")
    assert load_settings().redis_host == "environment"
    assert load_settings(redis_host="command-line").redis_host == "command-line"


def test_lists_are_written_with_commas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IMAP_EXCLUDE_LABELS", r"\Draft, Private")
    assert load_settings().imap_exclude_labels == ("\\Draft", "Private")


ALL = ("relabelled", "flagged", "trashed", "deleted", "restored", "reparsed", "erased")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        *(("", ()), ("all", ALL), ("true", ALL), ("false", ()), ("email.erased, Deleted", ("deleted", "erased"))),
        *(("born,all", ("born", *ALL)), ("email.received,flagged", ("flagged",))),
    ],
)
def test_the_changes_that_a_sink_is_told_of(monkeypatch: pytest.MonkeyPatch, text: str, kinds: tuple[str, ...]):
    monkeypatch.setenv("WEBHOOK_EVENTS", text)
    monkeypatch.setenv("NDJSON_EVENTS", "erased")
    settings = load_settings()
    assert settings.changes_told("webhook") == settings.webhook_events == kinds
    assert settings.changes_told("ndjson:FILE") == ("erased",)
    assert settings.changes_told("stream:key") == settings.changes_told("files") == ()


@pytest.mark.parametrize("text", ["eaten", "flagged,none"])
def test_a_change_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("WEBHOOK_EVENTS", text)
    with pytest.raises(ConfigurationError, match=r"WEBHOOK_EVENTS.* takes all, or some of born, relabelled"):
        load_settings()


@pytest.mark.parametrize(("text", "value"), [("all", "all"), ("now", "now"), ("2026-01-31", date(2026, 1, 31))])
def test_the_start_is_a_word_or_a_date(monkeypatch: pytest.MonkeyPatch, text: str, value: object):
    monkeypatch.setenv("IMAP_START", text)
    assert load_settings().imap_start == value


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch):
    _write("secret", "s3cret/@\n")
    monkeypatch.setenv("REDIS_PASSWORD_FILE", "secret")
    settings = load_settings()
    assert settings.redis_password == "s3cret/@"
    assert settings.redis_address.url == "redis://:s3cret%2F%40@localhost:6379/0"


def test_a_wrong_secret_is_never_printed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IMAP_PASSWORD_FILE", "/nowhere")
    with pytest.raises(ConfigurationError, match="IMAP_PASSWORD_FILE"):
        load_settings()
    monkeypatch.delenv("IMAP_PASSWORD_FILE")
    _write("config/settings.toml", "imap_password = [1, 2]\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "[1, 2]" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("REDIS_PROT", "REDIS_PORT"), ("IMAP_USERNAME", "IMAP_USER"), ("WORKER_LEASE", "WORKER_LEASE_SECONDS")],
)
def test_an_unknown_name_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch, name: str, nearest: str):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigurationError, match=f"{name}.*did you mean {nearest}"):
        load_settings()


@pytest.mark.parametrize(
    "name", ["GOOGLE_APPLICATION_CREDENTIALS", "REDIS_SERVICE_HOST", "REDIS_PORT_6379_TCP", "REDIS_PORT_6379_TCP_ADDR"]
)
def test_names_of_other_software_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "tcp://10.0.0.1:6379")
    load_settings()


def test_a_kubernetes_service_link_is_told_as_such(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REDIS_PORT", "tcp://10.0.0.1:6379")
    with pytest.raises(ConfigurationError, match="enableServiceLinks"):
        load_settings()


def test_a_foreign_accounts_variable_is_none_of_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCOUNTS", "whatever")
    assert [account.name for account in load_settings().all_accounts] == ["default"]


def test_account_tables_stand_over_the_general_settings():
    _write(
        "config/settings.toml",
        'imap_start = "now"\n[[accounts]]\nname = "sales"\nimap_user = "sales@example.com"\n'
        '[[accounts]]\nname = "support"\nimap_user = "support@example.com"\nimap_start = "all"\n',
    )
    sales, support = load_settings().all_accounts
    assert (sales.name, sales.imap_user, sales.imap_start) == ("sales", "sales@example.com", "now")
    assert (support.name, support.imap_start) == ("support", "all")


@pytest.mark.parametrize(
    "table",
    ['name = "Someone@example.com"', 'name = "a"\nimap_usr = "x"', 'name = "twin"\n[[accounts]]\nname = "twin"'],
)
def test_a_wrong_account_table_is_refused(table: str):
    _write("config/settings.toml", f"[[accounts]]\n{table}\n")
    with pytest.raises(ConfigurationError, match="accounts"):
        _ = load_settings().all_accounts


def test_the_example_lists_every_setting_with_its_default_and_meaning():
    lines = EXAMPLE.read_text().splitlines()
    shown = {}
    for above, line in pairwise(lines):
        if match := re.fullmatch(r"#([A-Z0-9_]+)=(.*)", line):
            shown[match[1].lower()] = (above.removeprefix("# ").removesuffix("."), match[2])
    fields = {name: field for name, field in Settings.model_fields.items() if name not in {"accounts", "routes"}}
    assert shown.keys() == fields.keys()
    for name, (meaning, default) in shown.items():
        assert meaning == fields[name].description
        assert default == _shown(fields[name].default), name


def _shown(default: object) -> str:
    if default is None:
        return ""
    if isinstance(default, tuple):
        return ",".join(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_the_example_is_a_valid_file(monkeypatch: pytest.MonkeyPatch):
    text = re.sub(r"^#([A-Z_]+=)", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    _write(".env", text)
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("uri", "taken"),
    [("http://login.example.com/token", False), ("http://127.0.0.1:1180/token", True), ("https://a.example/t", True)],
)
def test_a_token_endpoint_is_spoken_to_in_the_clear_on_this_machine_only(
    monkeypatch: pytest.MonkeyPatch, uri: str, taken: bool
):
    monkeypatch.setenv("GOOGLE_TOKEN_URI", uri)
    if taken:
        assert load_settings().google_token_uri == uri
    else:
        with pytest.raises(ConfigurationError, match=r"GOOGLE_TOKEN_URI.*https://"):
            load_settings()


def test_sentinels_and_cluster_nodes_are_hosts_with_ports():
    behind = load_settings(redis_mode="sentinel", redis_sentinels="a:26379, [::1]:26380", redis_password="x")
    assert behind.redis_address.nodes == (("a", 26379), ("::1", 26380))
    assert behind.redis_address.master == "mymaster"
    spread = load_settings(redis_mode="cluster", redis_cluster_nodes="a:7000,b:7001", redis_partitions=6)
    assert spread.redis_address.url == "redis://a:7000/0"
    assert (spread.redis_address.nodes, spread.redis_address.partitions) == ((("a", 7000), ("b", 7001)), 6)
    assert load_settings(redis_mode="cluster").redis_address.url == "redis://localhost:6379/0"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"redis_mode": "sentinel"}, "needs REDIS_SENTINELS"),
        ({"redis_sentinels": "a:1"}, "set REDIS_MODE=sentinel"),
        ({"redis_mode": "sentinel", "redis_cluster_nodes": "a:1", "redis_sentinels": "a:1"}, "set REDIS_MODE=cluster"),
        ({"redis_mode": "cluster", "redis_cluster_nodes": "a"}, "no host:port"),
        ({"redis_mode": "cluster", "redis_cluster_nodes": "a:port"}, "REDIS_CLUSTER_NODES"),
        ({"redis_partitions": 65}, "REDIS_PARTITIONS"),
    ],
)
def test_a_redis_that_cannot_be_meant_is_refused(given: dict[str, str], said: str):
    with pytest.raises(ConfigurationError, match=said):
        load_settings(**given)


@pytest.mark.parametrize(("lease", "timeout"), [("60", "60"), ("10", "12")])
def test_a_sink_may_not_take_as_long_as_a_lease(monkeypatch: pytest.MonkeyPatch, lease: str, timeout: str):
    monkeypatch.setenv("WORKER_LEASE_SECONDS", lease)
    assert load_settings().sink_timeout == int(lease) / 2
    monkeypatch.setenv("SINK_TIMEOUT_SECONDS", timeout)
    with pytest.raises(ConfigurationError, match=f"SINK_TIMEOUT_SECONDS={timeout} must be below WORKER_LEASE_SECONDS"):
        load_settings()


@pytest.mark.parametrize("host", ["imap.example.com", "10.0.0.5", "mail", "localhost.example.com"])
def test_an_account_of_its_own_must_not_send_its_password_in_plaintext_either(host: str) -> None:
    table = f'[[accounts]]\nname = "a"\nimap_host = "{host}"\nimap_tls = false\nimap_user = "x"\n'
    _write("config/settings.toml", table)
    with pytest.raises(ConfigurationError, match=r"\[\[accounts\]\].*IMAP_TLS=false is for a server on this machine"):
        load_settings().all_accounts  # noqa: B018
    _write("config/settings.toml", table.replace(host, "127.0.0.2"))
    assert load_settings().all_accounts[0].imap_host == "127.0.0.2"


def test_what_goes_to_another_machine_without_tls_is_named_with_its_setting() -> None:
    settings = load_settings(
        redis_url="redis://:s3cret@redis.example.com/0",
        webhook_url="http://hooks:8000/in",
        otel_exporter_otlp_endpoint="http://127.0.0.1:4318",
        alert_smtp_url="smtp://user:pw@mail.example.com",
    )
    found = {each.setting: (each.host, each.is_internal, each.exposed) for each in plaintext_connections(settings)}
    assert found == {
        "REDIS_URL": ("redis.example.com", False, "mail and the password"),
        "WEBHOOK_URL": ("hooks", True, "mail"),
        "ALERT_SMTP_URL": ("mail.example.com", False, "its password"),
    }
    assert list(plaintext_connections(load_settings(redis_url="rediss://:s3cret@redis.example.com/0"))) == []
