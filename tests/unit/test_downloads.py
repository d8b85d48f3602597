"""Names of files that come from mail are harmless wherever they are saved."""

from __future__ import annotations

import pytest

from email_ingestion.web.downloads import MAX_NAME, disposition, download, safe_name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\system32\\evil.dll", "evil.dll"),
        ("a/b\\", "attachment-1"),
        ("", "attachment-1"),
        ("...", "attachment-1"),
        (" . hidden . ", "hidden"),
        (".bashrc", "bashrc"),
        ("con", "attachment-1"),
        ("LPT1.txt", "attachment-1"),
        ("console.txt", "console.txt"),
        ("two\r\nSet-Cookie: x", "twoSet-Cookie_ x"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("nul\0l.txt", "null.txt"),
        ('say "hi"?.txt', "say _hi__.txt"),
        ("U\u0308bersicht.csv", "Übersicht.csv"),
        ("日本語 🎉.pdf", "日本語 🎉.pdf"),
    ],
)
def test_name_has_no_folder_no_control_character_and_no_device(name: str, safe: str) -> None:
    assert safe_name(name, "attachment-1") == safe


def test_long_name_keeps_its_ending() -> None:
    for name in ("x" * 1000 + ".pdf", "x" * 1000, "a." + "y" * 1000):
        assert len(safe_name(name, "f")) <= MAX_NAME
    assert safe_name("x" * 1000 + ".pdf", "f").endswith("x.pdf")


def test_header_field_says_the_name_in_ascii_and_whole() -> None:
    assert disposition("Übersicht; 1.csv") == (
        "attachment; filename=\"Ubersicht_ 1.csv\"; filename*=UTF-8''%C3%9Cbersicht%3B%201.csv"
    )
    assert disposition("日本語").startswith('attachment; filename="file"; ')


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "TEXT/HTML", "application/xhtml+xml", "x\r\ny"])
def test_what_a_browser_would_run_is_answered_as_bytes(kind: str) -> None:
    answer = download(iter([b""]), "a", kind, 0, "f")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
