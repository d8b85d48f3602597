"""Checks of the places where mail goes: database, blobs, other sinks, and the routes to them."""

from __future__ import annotations

from email_ingestion.blobs import open_blobs
from email_ingestion.doctor.findings import Finding, Findings
from email_ingestion.errors import EmailIngestionError
from email_ingestion.ledger.maintenance import describe_ledger
from email_ingestion.routing import Router
from email_ingestion.settings import Settings
from email_ingestion.sinks import close_sink, load_sink


def check_stores(settings: Settings) -> Findings:
    """Check the database without creating it; open and ping the other sinks; check the routes."""
    yield _database(settings.database_url)
    yield _blobs(settings.blob_url)
    for name in settings.sinks[1:]:  # the first is the database
        yield _sink(name, settings)
    if settings.routes:
        yield _routes(settings)


def _database(url: str) -> Finding:
    try:
        return Finding("database", "ok", describe_ledger(url))
    except EmailIngestionError as error:
        return Finding("database", "failed", str(error), "mend that, or set DATABASE_URL; then run this again")


def _blobs(url: str) -> Finding:
    try:
        open_blobs(url).ping()
    except EmailIngestionError as error:
        return Finding("blobs", "failed", str(error), "mend that, or set BLOB_URL; then run this again")
    return Finding("blobs", "ok", "it takes a write")


def _sink(name: str, settings: Settings) -> Finding:
    try:
        sink = load_sink(name, settings)
        try:
            sink.ping()
        finally:
            close_sink(sink)
    except EmailIngestionError as error:
        return Finding(f"sink {name}", "failed", str(error), f"mend that, or take {name} out of SINKS")
    return Finding(f"sink {name}", "ok", "it answers")


def _routes(settings: Settings) -> Finding:
    try:
        Router(settings.routes, settings.sinks[1:])
    except EmailIngestionError as error:
        return Finding("routes", "failed", str(error), "mend [[routes]] in config/settings.toml")
    return Finding("routes", "ok", f"{len(settings.routes)} routes")
