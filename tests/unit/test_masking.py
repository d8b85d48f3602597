"""`config show` and the evidence of an incident show where things lead, and nothing that opens them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from email_ingestion.settings import Settings, load_settings, mask_url
from email_ingestion.settings.effective_settings import effective_settings

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        (f"redis://user:{SECRET}@cache:6379/1", "redis://***@cache:6379/1"),
        (f"redis://:a/{SECRET}@cache:6379/1", "redis://***@cache:6379/1"),
        (f"redis://:a@{SECRET}@cache:6379/1", "redis://***@cache:6379/1"),
        (f"redis://:a#{SECRET}@cache:6379/1", "redis://***@cache:6379/1"),
        (f"redis://{SECRET}@cache", "redis://***@cache"),
        (f"postgresql+psycopg://u:{SECRET}@db/mail?password={SECRET}", "postgresql+psycopg://***@db/mail?***"),
        ("sqlite:///data/email_ingestion.db", "sqlite:///data/email_ingestion.db"),
        ("file:data/blobs", "file:data/blobs"),
        (f"s3://bucket/mail?secret_access_key={SECRET}", "s3://bucket/mail?***"),
        ("https://oauth2.googleapis.com/token", "https://oauth2.googleapis.com/token"),
        (f"https://login.example.com/{SECRET}/oauth2/v2.0/token", "https://login.example.com/***/oauth2/v2.0/token"),
        (f"https://hooks.example.com/{SECRET}", "https://hooks.example.com/***"),
        (f"https://hooks.example.com/x;{SECRET}?a=b#{SECRET}", "https://hooks.example.com/***?***#***"),
        (f"http://127.0.0.1:9000/{SECRET}/", "http://127.0.0.1:9000/***/"),
        (f"https://[::1]:1/{SECRET}", "https://[::1]:1/***"),
        (f"HTTPS://{SECRET}@collector:4318", "HTTPS://***@collector:4318"),
        (f"slack://{SECRET}/b/c", "slack://***"),
        (f"://{SECRET}", "://***"),
        ("", ""),
    ],
)
def test_an_address_shows_where_it_leads_and_no_secret(url: str, shown: str) -> None:
    assert mask_url(url) == shown
    assert mask_url(shown) == shown


def test_no_setting_shows_a_secret_whichever_way_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    urls = {
        "REDIS_URL": f"redis://:{SECRET}@localhost:6379/0",
        "DATABASE_URL": f"postgresql+psycopg://u:{SECRET}@db/mail",
        "BLOB_URL": f"s3://bucket?secret_access_key={SECRET}",
        "GOOGLE_TOKEN_URI": f"https://u:{SECRET}@h.example.com/{SECRET}",
        "GOOGLE_AUTH_URI": f"https://h.example.com/auth?client_secret={SECRET}",
        "WEBHOOK_URL": f"https://h.example.com/{SECRET}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://u:{SECRET}@collector:4318/{SECRET}?api-key={SECRET}",
        "ALERT_SMTP_URL": f"smtp://u:{SECRET}@h.example.com:587",
        "SLACK_ALERT_WEBHOOK": f"https://hooks.slack.com/services/{SECRET}",
        "INCIDENT_WEBHOOK": f"https://h.example.com/{SECRET}",
        "ALERT_CHANNELS": f"tgram://{SECRET}/chat",
        "SINKS": f"database,stream:redis://:{SECRET}@h:1/0",
    }
    secrets = [name for name in map(str.upper, Settings.model_fields) if name.endswith(("PASSWORD", "SECRET", "_KEY"))]
    assert len(secrets) > 5
    for name, value in urls.items() | dict.fromkeys(secrets, SECRET).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WEB_PROXY_SECRET", SECRET * 3)  # which must have 16 characters
    monkeypatch.setenv("INCIDENT_WEBHOOK_TOKEN", SECRET)
    shown = {each.name: each.value for each in effective_settings(load_settings())}
    assert not [name for name, value in shown.items() if SECRET in value]
    assert shown["OTEL_EXPORTER_OTLP_ENDPOINT"] == "https://***@collector:4318/***?***"
    assert "h.example.com" in shown["WEBHOOK_URL"]
    assert not [name for name in urls if not shown[name]]
    json.dumps(shown)
