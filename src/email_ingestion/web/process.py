"""Runs the web process from its PID file to its exit code. Nothing it needs has to be there when it starts."""

from __future__ import annotations

import json
import os
import socket
import ssl
from contextlib import ExitStack, closing
from functools import partial

from email_ingestion import __version__
from email_ingestion.atomic_files import write_private
from email_ingestion.background import stop_waiting_for_threads
from email_ingestion.daemon import (
    PidFile,
    StopSignal,
    handle_signals,
    notify_systemd,
    raise_descriptor_limit,
)
from email_ingestion.errors import ConfigurationError, ThreadUnavailable
from email_ingestion.events import LoopFailed, Observe, Started, Stopped, Stopping
from email_ingestion.file_modes import repair_modes
from email_ingestion.fleet.web_process import STEM
from email_ingestion.ops.event_log import EventLogger
from email_ingestion.ops.http_server import serve_app
from email_ingestion.ops.logs import LogLevel, configure_logs, reopen_logs
from email_ingestion.ops.raw_output import RawOutput
from email_ingestion.ops.start_journal import record_start
from email_ingestion.ops.status_records import Identity
from email_ingestion.settings import Settings, load_settings, notify_socket
from email_ingestion.web.context import WebContext
from email_ingestion.web.server import web_app


def run_web(settings: Settings) -> int:
    """Serve the pages and the API until SIGTERM or SIGINT; return the exit code.

    Raises ConfigurationError and OperationFailed when only an operator can help, such as for a port that is taken.
    """
    raise_descriptor_limit()
    identity = Identity("web", f"{socket.gethostname()}-web", __version__)
    stop = StopSignal(stop_waiting_for_threads)
    with ExitStack() as cleanup:
        cleanup.enter_context(PidFile(settings.pid_dir / f"{STEM}.pid"))
        repair_modes((settings.log_dir, settings.pid_dir))
        configure_logs(identity, settings.log_dir, settings.log_level, settings.log_format)
        observe = EventLogger()
        failed = partial(_report_failure, observe, "output")
        output = cleanup.enter_context(closing(RawOutput(settings.log_dir, STEM, failed)))
        handle_signals(stop, observe, lambda: output.crash_file, partial(_reload, output, settings))
        output.start()
        context = cleanup.enter_context(closing(WebContext.from_settings(settings)))
        tls = _tls(settings)
        on_error = partial(_report_failure, observe, "http")
        address = settings.web_host, settings.web_port, "WEB_PORT", "web-http"
        try:
            served = serve_app(web_app(settings, context), *address, tls=tls, on_error=on_error)
        except ThreadUnavailable:  # a stop was requested while there was none to spare
            return 0
        cleanup.callback(served.close)
        cleanup.callback(context.feed.close)  # before that: who waits for a change is answered
        address_file = settings.pid_dir / f"{STEM}.json"
        write_private(address_file, json.dumps({"pid": os.getpid(), "web_url": served.url}))
        cleanup.callback(address_file.unlink, missing_ok=True)
        start = cleanup.enter_context(record_start(settings.log_dir, identity))
        observe(Started(settings.origin))
        notify_systemd(notify_socket(), "READY=1")
        while not stop.wait(3600):
            pass
        notify_systemd(notify_socket(), "STOPPING=1")
        observe(Stopping(stop.reason or ""))
        start.reason, start.exit_code = stop.reason, 0
        observe(Stopped())
    return 0


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """Return TLS with certificate and key; None without. Raises ConfigurationError when they cannot be used."""
    certificate, key = settings.web_tls_certificate_file, settings.web_tls_key_file
    if certificate is None or key is None:
        return None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        tls.load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one
        reason = error.strerror or getattr(error, "reason", None) or "they are no certificate and its key"
        message = f"WEB_TLS_CERTIFICATE_FILE {certificate} and WEB_TLS_KEY_FILE {key} cannot be used: {reason}"
        raise ConfigurationError(message) from error
    return tls


def _reload(output: RawOutput, before: Settings) -> str:
    reopen_logs()
    output.reopen()
    try:
        settings = load_settings()
    except ConfigurationError as error:
        return f"logs were opened again, settings stay as they are: {error}"
    LogLevel(before.log_level).configure(settings.log_level)
    return f"logs were opened again, LOG_LEVEL is {settings.log_level}; other settings need a restart"


def _report_failure(observe: Observe, loop: str, error: Exception) -> None:
    observe(LoopFailed(loop, error))
