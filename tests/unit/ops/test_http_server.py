"""The endpoints, over real sockets."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import requests
from starlette.responses import PlainTextResponse

from email_ingestion import errors, events
from email_ingestion.ops import http_server
from email_ingestion.ops.api_models import FullHealthAnswer, HealthAnswer, ReadyAnswer, StatusAnswer
from email_ingestion.ops.http_server import MAX_CONNECTIONS, Endpoints, serve, serve_app
from email_ingestion.ops.observers import Ops
from email_ingestion.ops.request_guard import AllowedHosts
from email_ingestion.ops.status_records import Peer, RedisState
from tests.drills.certificate import make_certificate
from tests.unit.ops.shown import READING, FakeBreaker

REDIS_UP = events.Probed("redis", ok=True, seconds=0.001, error=None)

# Literally section 2.2 of the runbook; only the port differs.
ONE_LINER = r"""
curl -s http://localhost:8080/status | python -c "
import json,sys
d=json.load(sys.stdin)
for cb in d.get('circuit_breakers',[]):
    print(f\"{cb['name']}: {cb['state']}  failures={cb['failure_count']}\")
"
"""


@pytest.fixture
def served(worker: Ops) -> Iterator[Endpoints]:
    endpoints = serve(worker.status, worker.metrics, "127.0.0.1", 0, 0)
    yield endpoints
    endpoints.close()


def get(url: str) -> requests.Response:
    return requests.get(url, timeout=5)


def test_health_and_its_alias(served: Endpoints) -> None:
    for path in ("/health", "/livez"):
        answer = get(served.ops_url + path)
        assert (answer.status_code, answer.json()["status"]) == (200, "alive")
        assert answer.headers["content-type"] == "application/json"
    assert answer.json()["loops"][0]["name"] == "consume"


def test_ready_and_its_alias_follow_the_state(served: Endpoints, worker: Ops) -> None:
    seen = []
    for event in (events.Started(""), REDIS_UP, events.FetchPaused("default", "full"), events.Stopping("SIGTERM")):
        worker.observe(event)
        answers = {path: get(served.ops_url + path) for path in ("/ready", "/readyz")}
        assert len({answer.status_code for answer in answers.values()}) == 1
        seen.append((answers["/ready"].status_code, answers["/ready"].json()["status"]))
    assert seen == [(503, "starting"), (200, "ready"), (200, "degraded"), (503, "draining")]
    assert answers["/ready"].json()["reasons"] == ["stopping: SIGTERM"]


def test_status_is_200_whatever_happens(served: Endpoints, worker: Ops) -> None:
    worker.observe(events.RedisFailed(errors.RedisConnectionError("gone"), 1.0))
    answer = get(served.ops_url + "/status")
    assert (answer.status_code, answer.json()["status"]) == (200, "not_ready")


def test_metrics_are_on_both_ports_and_nothing_else_on_theirs(served: Endpoints) -> None:
    for url in (served.ops_url, served.metrics_url):
        answer = get(url + "/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "email_ingestion_circuit_breaker_state" in answer.text
    assert "/metrics" in get(served.metrics_url + "/").text
    assert {get(served.metrics_url + path).status_code for path in ("/status", "/health", "/ready")} == {404}


def test_head_is_answered(served: Endpoints) -> None:
    for path in ("/health", "/status", "/metrics", "/docs"):
        answer = requests.head(served.ops_url + path, timeout=5)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("component", ["worker", "producer"])
def test_every_answer_has_the_keys_of_its_documented_model_in_their_order(
    component: str, request: pytest.FixtureRequest
) -> None:
    ops: Ops = request.getfixturevalue(component)
    ops.status.set_peers([Peer("worker", "worker-2", 7, alive=True, ready=None, ops_url=None, seen_at=1.0)])
    ops.status.collect(lambda: READING)
    ops.observe(events.HistoryWalked("default", 250, 0.75, 12.34))
    bodies = ((HealthAnswer, ops.status.health()[1]), (ReadyAnswer, ops.status.ready()[1]))
    for model, body in (*bodies, (StatusAnswer, ops.status.report())):
        shown = json.loads(json.dumps(body))
        assert json.dumps(model.model_validate(shown).model_dump()) == json.dumps(shown)


def test_the_schema_names_every_path_and_its_page_needs_nothing_from_elsewhere(served: Endpoints) -> None:
    schema = get(served.ops_url + "/openapi.json").json()
    assert {"/health", "/livez", "/ready", "/readyz", "/status", "/metrics"} <= schema["paths"].keys()
    content = schema["paths"]["/status"]["get"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"]["$ref"].endswith("/StatusAnswer")
    assert "503" in schema["paths"]["/ready"]["get"]["responses"]
    page = get(served.ops_url + "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert all(path in page.text for path in schema["paths"])
    assert all(f"id='{model}'" in page.text for model in schema["components"]["schemas"])
    assert not re.search(r"<script|src=|https?://|@import", page.text)


def test_answers_on_one_connection_do_not_wait_for_delayed_acknowledgements(served: Endpoints) -> None:
    with requests.Session() as session:
        seconds = [session.get(served.ops_url + "/health", timeout=5).elapsed.total_seconds() for _ in range(10)]
    assert min(seconds[1:]) < 0.03  # 0.04 with Nagle's algorithm


def test_serving_loads_no_pydantic_of_the_first_version() -> None:
    code = (
        "import sys; from tests.unit.ops.shown import WORKER, WORKER_NAMES;"
        "from email_ingestion.ops.api import ops_app; from email_ingestion.ops.observers import open_ops;"
        "ops = open_ops(WORKER, WORKER_NAMES, list); app = ops_app(ops.status, ops.metrics);"
        "assert 'pydantic.v1' not in sys.modules; assert app.openapi()['paths']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[3])


def test_answers_come_at_once_while_redis_hangs(served: Endpoints, worker: Ops) -> None:
    release = threading.Event()

    def hanging() -> RedisState:
        release.wait(60)
        return READING

    reader = threading.Thread(target=worker.status.collect, args=(hanging,))
    reader.start()
    get(served.ops_url + "/health")
    for path in ("/health", "/ready", "/status", "/metrics"):
        get(served.ops_url + path)
    assert reader.is_alive()  # nobody has waited for it
    release.set()
    reader.join()


def test_the_runbooks_one_liner_prints_one_line_per_breaker(served: Endpoints, redis_breaker: FakeBreaker) -> None:
    redis_breaker.state, redis_breaker.failure_count = "OPEN", 5
    command = ONE_LINER.replace(":8080", f":{served.ops_port}")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PATH": path},
    )
    assert (done.stdout, done.stderr) == ("redis: OPEN  failures=5\n", "")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:8080"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Host": "[::1]:8080"}, 404),
        ({"Host": "localhost:8080"}, 404),
        ({}, 404),
    ],
)
def test_commands_from_web_pages_are_refused_before_anything_looks_at_them(
    served: Endpoints, headers: dict[str, str], code: int
) -> None:
    assert requests.post(served.ops_url + "/admin/pause", headers=headers, timeout=5).status_code == code


def test_a_busy_port_names_its_owner_and_the_way_out(worker: Ops, served: Endpoints) -> None:
    with pytest.raises(errors.OperationFailed) as caught:
        serve(worker.status, worker.metrics, "127.0.0.1", served.ops_port, 0)
    assert str(caught.value).startswith(f"port {served.ops_port} is taken by PID {os.getpid()} (")
    assert str(caught.value).endswith("; stop it or set OPS_PORT")


def test_a_busy_metrics_port_gives_the_ops_port_back(worker: Ops, served: Endpoints) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(errors.OperationFailed, match="set METRICS_PORT"):
        serve(worker.status, worker.metrics, "127.0.0.1", port, served.metrics_port)
    socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_a_configuration_error(worker: Ops, host: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="OPS_HOST"):
        serve(worker.status, worker.metrics, host, 0, 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_interface_can_be_served(worker: Ops, host: str) -> None:
    if host == "::" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    endpoints = serve(worker.status, worker.metrics, host, 0, 0)
    try:
        assert get(f"http://127.0.0.1:{endpoints.ops_port}/health").status_code == 200
    finally:
        endpoints.close()


def test_after_close_the_ports_are_free(worker: Ops) -> None:
    endpoints = serve(worker.status, worker.metrics, "127.0.0.1", 0, 0)
    get(endpoints.ops_url + "/health")
    endpoints.close()
    again = serve(worker.status, worker.metrics, "127.0.0.1", endpoints.ops_port, endpoints.metrics_port)
    assert get(again.ops_url + "/health").status_code == 200
    again.close()


def hold(served: Endpoints, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", served.ops_port), timeout=10)
    connection.sendall(sent)
    return connection


def was_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: local"])
def test_callers_that_hold_their_connections_are_closed_oldest_first_and_others_answered(
    served: Endpoints, sent: bytes
) -> None:
    with ExitStack() as held:
        holders = [held.enter_context(closing(hold(served, sent))) for _ in range(3 * MAX_CONNECTIONS)]
        assert get(served.ops_url + "/health").status_code == 200
        assert all(was_closed(holder) for holder in holders[:MAX_CONNECTIONS])
        holders[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            was_closed(holders[-1])


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[int, ssl.SSLContext]]:
    """The port of an application that is served with TLS, and what a client needs to speak it."""
    file = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    with closing(serve_app(PlainTextResponse("here"), "127.0.0.1", 0, "WEB_PORT", "test-http", tls=tls)) as endpoint:
        yield int(endpoint.url.rpartition(":")[2]), ssl.create_default_context(cafile=str(file))


def ask(port: int, trust: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("sent", [b"", bytes.fromhex("1603010200"), b"GET / HTTP/1.1\r\n\r\n"])
def test_handshakes_that_do_not_end_are_closed_oldest_first_and_others_answered(
    secured: tuple[int, ssl.SSLContext], sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    port, trust = secured
    with ExitStack() as held:
        holders = []
        for _ in range(3 * MAX_CONNECTIONS):
            holders.append(held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)))
            holders[-1].sendall(sent)
        answer = ask(port, trust)
        assert (answer[:15], answer[-4:]) == (b"HTTP/1.1 200 OK", b"here")
        assert all(was_closed(holder) for holder in holders[:MAX_CONNECTIONS])
    assert not caplog.records


def test_a_handshake_that_does_not_end_is_given_up(
    secured: tuple[int, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", secured[0]), timeout=60) as holder:
        assert was_closed(holder)


def test_a_request_that_does_not_end_is_given_up(served: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.2)
    with closing(hold(served, b"GET /health HTTP/1.1\r\nX: ")) as trickling:
        ended = threading.Event()

        def trickle() -> None:
            with suppress(OSError):
                while not ended.wait(0.05):
                    trickling.send(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert was_closed(trickling)
        finally:
            ended.set()
            thread.join()


def test_headers_that_do_not_end_are_refused(served: Endpoints) -> None:
    with closing(hold(served, b"GET /health HTTP/1.1\r\nX: " + b"x" * 1_000_000)) as flooding:
        assert was_closed(flooding) or b"400" in flooding.recv(4096)


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        ("GET /health?full=%00", (), 400),
        ("GET /health?full=%ff", (), 400),
        ("GET /%ed%a0%80", (), 400),
        ("GET /health?" + "a=b&" * 8000, (), 431),
        ("GET /health", tuple(f"X-{number}: a" for number in range(3000)), 431),
        ("GET /health", ("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        ("POST /admin/pause", ("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        ("POST /admin/breakers/%00", (), 400),
        ("GET /health", ("Host: localhost",), 400),
    ],
)
def test_a_request_that_means_nothing_or_two_things_is_refused_on_both_ports(
    served: Endpoints, request_line: str, fields: tuple[str, ...], status: int
) -> None:
    lines = [f"{request_line} HTTP/1.1", "Host: localhost", *fields, "", "0", "", "GET /health HTTP/1.1", ""]
    for port in (served.ops_port, served.metrics_port):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall("\r\n".join(lines).encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert answer.count(b"HTTP/1.1 ") == 1


def test_a_host_that_is_none_is_malformed_on_both_ports(served: Endpoints) -> None:
    for host in (
        *(
            "localhost, evil.example",
            "localhost evil.example",
            "anna@localhost",
            "localhost/health",
            "localhost?a",
            "#a",
        ),
        *(
            "b\u00fccher",
            "b%C3%BCcher",
            "localhost:99999",
            "localhost:8a",
            "localhost:-1",
            "localhost:80:80",
            "[::1",
            ":",
        ),
        *("localhost..", ".localhost", "::1"),
    ):
        for port in (served.ops_port, served.metrics_port):
            request = f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(request.encode("utf-8"))
                assert connection.recv(4096).startswith(b"HTTP/1.1 400 "), host


def test_a_slash_at_the_end_changes_no_answer(worker: Ops) -> None:
    endpoints = serve(worker.status, worker.metrics, "127.0.0.1", 0, 0, read_token="s3cret-of-readers")
    try:
        for path in ("/health", "/livez", "/ready", "/readyz", "/status", "/metrics", "/docs", "/runbooks", "/none"):
            answers = [
                requests.get(endpoints.ops_url + it, allow_redirects=False, timeout=60) for it in (path, f"{path}/")
            ]
            assert len({each.status_code for each in answers}) == 1, path
        assert requests.get(endpoints.ops_url + "/ready/", allow_redirects=False, timeout=60).status_code == 503
        assert requests.get(endpoints.metrics_url + "/metrics/", allow_redirects=False, timeout=60).status_code == 401
    finally:
        endpoints.close()


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8080", "a.localhost", "127.0.0.1", "127.9.9.9:1", "[::1]:8080", "[fe80::1%25eth0]"),
        *("10.1.2.3:8080", "[2001:db8::1]", "producer", "producer:8080", "my_service", socket.gethostname()),
        *("mail.example.com", "MAIL.example.com.:8080", "a.b.svc.local"),
    ],
)
def test_the_names_of_this_machine_and_the_configured_ones_are_answered(host: str) -> None:
    assert AllowedHosts.of_machine("127.0.0.1", ["mail.example.com", "*.svc.local"]).allow(host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:8080", "127.1"),
        *(
            "svc.local",
            "xmail.example.com",
            "evil.example@127.0.0.1",
            "127.0.0.1/evil.example",
            "[::1",
            "[evil.example]",
            "[cafe]",
            "localhost, evil.example",
            "localhost:8080@evil.example",
        ),
    ],
)
def test_a_name_that_somebody_else_may_own_is_refused(host: str) -> None:
    assert not AllowedHosts.of_machine("127.0.0.1", ["mail.example.com", "*.svc.local"]).allow(host)


def test_every_path_of_both_ports_refuses_a_foreign_host_and_answers_without_one(served: Endpoints) -> None:
    for url in (served.ops_url, served.metrics_url):
        for path in ("/", "/health", "/ready", "/status", "/metrics", "/docs", "/openapi.json", "/none"):
            assert requests.get(url + path, headers={"Host": "evil.example"}, timeout=5).status_code == 403, path
    with closing(hold(served, b"GET /health HTTP/1.0\r\n\r\n")) as nameless:
        assert nameless.recv(4096).startswith(b"HTTP/1.1 200")


def test_with_a_read_token_only_probes_are_answered_without_it(worker: Ops) -> None:
    endpoints = serve(worker.status, worker.metrics, "127.0.0.1", 0, 0, read_token="s3cret-of-readers")
    bearer = {"Authorization": "Bearer s3cret-of-readers"}
    try:
        for path in ("/health", "/livez", "/ready", "/readyz"):
            assert get(endpoints.ops_url + path).status_code in {200, 503}
        for url in (f"{endpoints.ops_url}/status", f"{endpoints.ops_url}/metrics", f"{endpoints.metrics_url}/metrics"):
            refused = get(url)
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "OPS_READ_TOKEN_FILE" in refused.text
            assert requests.get(url, headers={"Authorization": "Bearer wrong"}, timeout=5).status_code == 401
            assert requests.get(url, headers=bearer, timeout=5).status_code == 200
    finally:
        endpoints.close()


def test_full_health_names_what_is_unwell_and_plain_health_does_not_care(served: Endpoints, worker: Ops) -> None:
    worker.observe(REDIS_UP)
    well = get(served.ops_url + "/health?full=1")
    assert (well.status_code, well.json()["unhealthy"]) == (200, [])
    assert {"redis"} <= {check["name"] for check in well.json()["checks"]}
    worker.observe(events.Probed("redis", ok=False, seconds=0.1, error=errors.RedisConnectionError("gone")))
    for path in ("/health?full=1", "/health/?full=1"):
        unwell = get(served.ops_url + path)
        assert (unwell.status_code, unwell.json()["unhealthy"]) == (503, ["check redis"])
        assert FullHealthAnswer.model_validate(unwell.json()).model_dump() == unwell.json()
    assert [get(served.ops_url + path).status_code for path in ("/health", "/health/", "/health?full=0")] == [200] * 3
