"""Processes that use the same database say so with the same mark."""

from __future__ import annotations

from pathlib import Path

from email_ingestion.ledger.mark import ledger_mark


def test_a_server_is_the_same_whoever_logs_in() -> None:
    mark = ledger_mark("postgresql+psycopg://worker:p%40ss#/?@db.example.com:5432/mail")
    assert mark
    assert mark == ledger_mark("postgresql://producer:other@db.example.com:5432/mail")
    assert mark == ledger_mark("postgresql://db.example.com:5432/mail")
    assert mark != ledger_mark("postgresql://db.example.com:5432/other")
    assert mark != ledger_mark("postgresql://elsewhere.example.com:5432/mail")


def test_a_file_is_the_same_under_every_path(tmp_path: Path) -> None:
    file, other = tmp_path / "mail.db", tmp_path / "other.db"
    assert ledger_mark(f"sqlite:///{file}") is None
    file.touch()
    other.touch()
    (tmp_path / "linked.db").symlink_to(file)
    mark = ledger_mark(f"sqlite:///{file}")
    assert mark
    assert mark == ledger_mark(f"sqlite:///{tmp_path}/linked.db?timeout=3")
    assert mark != ledger_mark(f"sqlite:///{other}")


def test_a_relative_path_is_taken_from_where_the_process_runs(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mail.db").touch()
    monkeypatch.chdir(tmp_path)
    assert ledger_mark("sqlite:///mail.db") == ledger_mark(f"sqlite:///{tmp_path}/mail.db")
