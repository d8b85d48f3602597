"""A stage of the flow as the overview draws it."""

from __future__ import annotations

import re
from types import SimpleNamespace

from email_ingestion.web.rendering import environment


def test_numbers_of_ten_digits_stay_within_their_box() -> None:
    lines = ("9,999,999,999 dead letters", "9,999,999,999 owed to 12 more", "ready")
    node = SimpleNamespace(title="Stream", state="ok", link="", lines=lines)
    box = environment().get_template("flow_box.html").module.box
    for width in (198, 292):  # beside each other on a wide screen, below each other on a narrow one
        drawn = re.findall(r"<text x=\"16\" y=\"\d+\"([^>]*)>([^<]+)</text>", str(box(node, 4, 6, width, 84)))
        assert [text for _, text in drawn] == list(lines)
        for attributes, text in drawn:
            is_long = len(text) * 8.6 > width - 24
            assert (f'textLength="{width - 24}"' in attributes) is is_long, text
