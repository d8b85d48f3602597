"""The runbooks in the frame of the pages: found by an alert's name, whole, and with no HTML of their own."""

from __future__ import annotations

import re
from pathlib import Path

from tests.servers.web import Visitor, running_pages, web_settings


def test_an_alert_leads_to_its_section(tmp_path: Path) -> None:
    settings = web_settings(tmp_path)
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings, "reader")
        found = visitor.get("/runbooks", params={"q": "EmailIngestionRedisDown"})
        target = re.search(r'href="(/runbooks/incident_response#[^"]+)">2.1 Redis Down', found.text)
        assert target
        page = visitor.get(target[1])
        assert f'id="{target[1].partition("#")[2]}"' in page.text
        assert '<a id="21-redis-down"></a>' in page.text, "where the links of alerts lead"
        assert "step:" not in page.text, "comments for machines are not shown"
        assert "<script" not in page.text
        assert "No section has that." in visitor.get("/runbooks", params={"q": "xyzzy <b>"}).text
        assert visitor.get("/runbooks/../architecture").status_code == 404
        assert visitor.get("/runbooks/ledger.toml").status_code == 404
