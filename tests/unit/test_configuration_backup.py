"""The backup of the configuration holds all of it but the secrets, and names those."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import pytest

from email_ingestion.backup.configuration import back_up_configuration, without_secrets
from email_ingestion.errors import OperationFailed

ENV = """\
# ours
REDIS_HOST=redis.example.com
REDIS_PASSWORD=geheim1
export IMAP_PASSWORD="geheim2"
DATABASE_URL=postgresql+psycopg://app:geheim3@db.example.com/mail
WEBHOOK_URL=https://hooks.example.com/services/geheim4
TOKEN_ENCRYPTION_KEY=geheim5
ALERT_CHANNELS=slack://geheim6/x,mailto://u:geheim7@example.com
REDIS_PASSWORD_FILE=/run/secrets/redis
#IMAP_PASSWORD=geheim8
"""
TOML = """\
imap_host = "imap.example.com"
[[accounts]]
name = "second"
imap_password = "geheim9"
"""
REDIS = "port 6379\nuser email_ingestion on >geheim10 #geheim11 ~* +@all\nrequirepass geheim12\n"
ALERTS = "route: {receiver: ops}\nreceivers:\n  - slack_configs:\n      - api_url: https://hooks.slack.com/services/geheim13\n"


def test_every_secret_is_left_out_and_named_and_all_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()
    texts = {".env": ENV, "config/settings.toml": TOML, "config/redis.conf": REDIS, "config/alertmanager.yml": ALERTS}
    for name, text in texts.items():
        Path(name).write_text(text)
    made = back_up_configuration(tmp_path / "backups")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    with tarfile.open(made.path) as archive:
        found = {each.name: archive.extractfile(each).read().decode() for each in archive.getmembers()}
    assert found.keys() == {*texts, "LEFT-OUT.txt"}
    assert "geheim" not in "".join(found.values())
    for kept in ("REDIS_HOST=redis.example.com", "db.example.com/mail", "REDIS_PASSWORD_FILE=/run/secrets/redis"):
        assert kept in found[".env"]
    assert 'imap_host = "imap.example.com"' in found["config/settings.toml"]
    assert "port 6379" in found["config/redis.conf"]
    named = {".env: REDIS_PASSWORD", ".env: TOKEN_ENCRYPTION_KEY", "config/settings.toml: imap_password"}
    assert named <= set(made.left_out)
    assert found["LEFT-OUT.txt"].splitlines() == made.left_out


def test_a_folder_without_configuration_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OperationFailed, match="no configuration here"):
        back_up_configuration(tmp_path)


def test_a_file_without_secrets_stays_as_it_is():
    text = "groups:\r\n  - name: x\n    runbook_url: https://github.com/example/page.md#21\n\n  # token\nno newline"
    assert without_secrets("alerts.yml", text) == (text, [])
