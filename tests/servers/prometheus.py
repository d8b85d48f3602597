"""A real Prometheus and a real Alertmanager on our own configuration, in which time runs faster."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.servers.missing import program
from tests.servers.ports import free_port

CONFIG = Path(__file__).resolve().parents[2] / "config"
UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
SCRAPE_MILLISECONDS = 300  # no scrape is due sooner: one that is late ends the series, and alerts wait once more


def faster(text: str, times: float) -> str:
    """A rule or configuration file in which every duration is shorter."""

    def shorter(found: re.Match[str]) -> str:
        milliseconds = round(float(found[2]) * UNITS[found[3]] / times * 1000)
        least = SCRAPE_MILLISECONDS if found[1].startswith("scrape_interval") else 1
        return f"{found[1]}{max(least, milliseconds)}ms"

    written = r"(\[|for: |offset |\w+_interval: |group_wait: )(\d+)([dhms])\b"
    return re.sub(written, shorter, text)


def lower(text: str, times: float, *thresholds: str) -> str:
    """A rule file in which these thresholds are lower."""
    for name in thresholds:
        found = re.search(rf'(record: email_ingestion:threshold:{name}\n +expr: ")(\d+)"', text)
        assert found, name
        text = text.replace(found[0], f'{found[1]}{float(found[2]) / times}"')
    return text


@dataclass
class Prometheus:
    """What a test asks."""

    port: int

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an expression now; an error of Prometheus fails the test."""
        wanted = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{wanted}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                data = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        return data["result"] if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]

    def firing(self) -> dict[str, str]:
        """The priority of every alert that fires, by its name without the product's."""
        found = self.query('ALERTS{alertstate="firing"}')
        return {
            each["metric"]["alertname"].removeprefix("EmailIngestion"): each["metric"]["priority"] for each in found
        }


@contextmanager
def running_prometheus(
    folder: Path, targets: Path, *, times: float, lowered: tuple[str, ...] = (), alertmanager: int = 9, port: int = 0
) -> Iterator[Prometheus]:
    """Our configuration on the targets of a place; every duration and the thresholds in `lowered` `times` shorter."""
    binary = program("prometheus", "prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    config = faster((CONFIG / "prometheus.yml").read_text(), times)
    config = config.replace("../data/targets", str(targets.absolute())).replace(":9693", f":{alertmanager}")
    (folder / "prometheus.yml").write_text(config)
    (folder / "alerts.yml").write_text(lower(faster((CONFIG / "alerts.yml").read_text(), times), times, *lowered))
    port = port or free_port()
    command = [binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--rules.alert.resend-delay=1s", "--log.level=warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _until_ready(f"http://127.0.0.1:{port}/-/ready", process, folder / "prometheus.log")
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()


@dataclass
class Notified:
    """What reached each receiver: (status, alert name, priority) in order."""

    port: int = 0
    heard: list[tuple[str, str, str, str]] = field(default_factory=list)

    def at(self, receiver: str, status: str = "firing") -> list[str]:
        """The names of the alerts somebody was told of."""
        return [name for where, what, name, _ in self.heard if (where, what) == (receiver, status)]


@contextmanager
def running_alertmanager(folder: Path, *, times: float, port: int = 0) -> Iterator[tuple[int, Notified]]:
    """Our configuration with its receivers, which write down what they hear; gives its port."""
    binary = program("prometheus-alertmanager", "prometheus-alertmanager")
    folder.mkdir(parents=True, exist_ok=True)
    with _receivers() as notified:
        config = faster((CONFIG / "alertmanager.yml").read_text(), times).replace(":9694", f":{notified.port}")
        (folder / "alertmanager.yml").write_text(config)
        port = port or free_port()
        command = [binary, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
        with (folder / "alertmanager.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _until_ready(f"http://127.0.0.1:{port}/-/ready", process, folder / "alertmanager.log")
            yield port, notified
        finally:
            process.kill()
            process.wait()


@contextmanager
def _receivers() -> Iterator[Notified]:
    notified = Notified()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for alert in body["alerts"]:
                name = alert["labels"]["alertname"].removeprefix("EmailIngestion")
                notified.heard.append((self.path.strip("/"), alert["status"], name, alert["labels"]["priority"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    notified.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield notified
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{url} does not answer: {log.read_text()}"
            time.sleep(0.05)
        else:
            return
