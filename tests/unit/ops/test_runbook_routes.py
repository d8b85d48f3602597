"""The runbooks on the ops port: every link of an alert leads to a heading there."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
import yaml
from fastapi import FastAPI

from email_ingestion.ops.builtin_alerts import RUNBOOK
from email_ingestion.ops.runbook_routes import add_runbooks, runbook_names
from email_ingestion.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
BASE = Settings.model_fields["runbook_base_url"].default


class Client:
    def __init__(self) -> None:
        self._app = FastAPI()
        add_runbooks(self._app)

    def get(self, path: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://here") as client:
                return await client.get(path)

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


@pytest.mark.parametrize("language", ["", "/it"])
def test_every_alert_leads_to_a_section(client: Client, language: str) -> None:
    groups = yaml.safe_load((ROOT / "config" / "alerts.yml").read_text())["groups"]
    urls = {rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"] if "alert" in rule}
    urls |= set(
        re.findall(r'"(http[^"]+/incident_response[^"]*)"', (ROOT / "config/grafana_dashboard.json").read_text())
    )
    assert len(urls) > 10
    assert f"{BASE}/incident_response" == RUNBOOK
    for url in urls:
        assert url.startswith(f"{BASE}/")
        path, _, place = url.removeprefix(BASE).partition("#")
        answer = client.get(f"/runbooks{language}{path}")
        assert answer.status_code == 200
        assert f"<html lang='{language[1:] or 'en'}'>" in answer.text
        assert not place or f'id="{place}"' in answer.text, url


@pytest.mark.parametrize("name", runbook_names())
def test_every_link_of_a_page_leads_somewhere(client: Client, name: str) -> None:
    text = client.get(f"/runbooks/{name}").text
    for target in re.findall(r'<a href="([^"]+)"', text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, place = target.partition("#")
        there = client.get(f"/runbooks/{name.rpartition('/')[0]}/{path}".replace("//", "/")) if path else None
        assert there is None or there.status_code == 200, target
        found = there.text if there else text
        assert not place or f'id="{place}"' in found, target


def test_other_files_are_no_runbooks(client: Client) -> None:
    assert client.get("/runbooks/../architecture").status_code == 404
    assert client.get("/runbooks/ledger.toml").status_code == 404
    assert "incident_response" in client.get("/runbooks").text
