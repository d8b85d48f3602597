"""The pods of deploy/kubernetes, run by `podman kube play`: mail comes into PostgreSQL, roots are read-only.

No cluster is to be had: what schedules, probes over HTTP, lets connect or scales is not tried.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.machines import APP_IMAGE, Namespaces, Podman, come_in, done_by, last_line, not_tried, until
from tests.deploy.outside import POSTGRES_PORT, S3_PORT
from tests.deploy.pods import Cluster
from tests.servers.processes import ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1500)]
OUTSIDE = "192.0.2.10"  # where PostgreSQL and S3 are, seen from the pods
REDIS_IMAGE = "docker.io/library/redis:7.4-bookworm"
SPACE = f"""
mount --make-rprivate /
mount -t proc proc /proc
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
# Else netavark hangs up on whatever process has in here the number that a name server of an earlier run had.
mkdir -p /run/containers
mount -t tmpfs tmpfs /run/containers
ip link set lo up
ip address add {OUTSIDE}/32 dev lo
echo 1 > /proc/sys/net/ipv4/ip_forward || true
sleep infinity
"""
SANDBOX = [
    "email-ingestion",
    "sandbox",
    "--state=data/sandbox.db",
    "--user=demo@example.com",
    "--write-token=data/token.json",
]
DELIVER_LARGE = (
    "import urllib.request as u; MAIL = {'Content-Type': 'message/rfc822'};"
    "u.urlopen(u.Request('http://127.0.0.1:1181/deliver', b'Subject: large\\r\\n\\r\\n' + b'x' * 99999, MAIL))"
)
# What the page leaves to the reader: the account, and where PostgreSQL and the bucket are.
SETTINGS = {
    "IMAP_HOST": "127.0.0.1",
    "IMAP_PORT": "1143",
    "IMAP_TLS": "false",
    "IMAP_USER": "demo@example.com",
    "GOOGLE_CLIENT_ID": "sandbox-client",
    "GOOGLE_CLIENT_SECRET": "sandbox-secret",
    "GOOGLE_TOKEN_URI": "http://127.0.0.1:1180/token",
    "DATABASE_URL": f"postgresql+psycopg://email_ingestion:change-me@{OUTSIDE}:{POSTGRES_PORT}/email_ingestion",
    "AWS_ENDPOINT_URL": f"http://{OUTSIDE}:{S3_PORT}",
    "AWS_ALLOW_HTTP": "true",
    "BLOB_THRESHOLD_BYTES": "20000",
}


class Pods:
    """Podman in a network of its own."""

    def __init__(self, space: Namespaces, podman: Podman, cluster: Cluster) -> None:
        self.space, self.podman, self.cluster = space, podman, cluster

    def call(self, *words: str | Path, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        variables = [f"{name}={value}" for name, value in self.podman.environment.items()]
        return self.space.call("env", *variables, "podman", *words, seconds=seconds)

    def done_by(self, *words: str | Path, seconds: float = 600) -> str:
        done = self.call(*words, seconds=seconds)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout

    def play(self, kind: str, name: str, pod_name: str = "", **more) -> str:
        """Start the pod; returns its address."""
        pod = pod_name or name
        self.done_by("kube", "play", self.cluster.pod(kind, name, pod, SETTINGS, **more))
        infra = json.loads(self.done_by("pod", "inspect", pod))["InfraContainerID"]
        networks = json.loads(self.done_by("container", "inspect", infra))[0]["NetworkSettings"]["Networks"]
        return next(iter(networks.values()))["IPAddress"]

    def get(self, url: str) -> dict:
        done = self.space.call("curl", "-sS", "--max-time", "10", url)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else {}

    def inside(self, container: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.call("exec", container, *words)


@pytest.fixture(scope="module")
def pods(folder: Path, podman: Podman) -> Iterator[Pods]:
    if shutil.which("kubectl") is None:
        not_tried("kubectl is not installed (Debian: apt-get install kubernetes-client)")
    text = done_by("kubectl", "kustomize", ROOT / "deploy/kubernetes")
    secret = (ROOT / "deploy/kubernetes/secret.example.yaml").read_text()
    work = folder / "pods"
    work.mkdir(exist_ok=True)
    cluster = Cluster.of(f"{text}\n---\n{secret}", work, APP_IMAGE)
    cluster.clear()
    if podman.call("image", "exists", REDIS_IMAGE).returncode:
        podman.build_stand_ins()
    space = Namespaces(SPACE, folder / "pods.log")
    outside = None
    try:
        pods = Pods(space, podman, cluster)
        if podman.restart():  # with DEPLOY_FOLDER: the pods of an earlier run ended with their namespaces
            pods.call("pod", "rm", "--all", "--force", "--time=0")
        done = pods.call("run", "--rm", APP_IMAGE, "true")
        if done.returncode:
            not_tried(f"no container has a network of its own here: {last_line(done.stderr)}")
        outside = subprocess.Popen(
            space.words(sys.executable, "-m", "tests.deploy.outside", "email-ingestion", folder=str(ROOT)),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert outside.stdout
        assert outside.stdout.readline() == "both answer\n"
        yield pods
    finally:
        space.close()
        if outside:
            outside.kill()
            outside.communicate()


def test_mail_comes_into_postgresql_from_pods_that_may_write_their_volumes_only(pods: Pods):
    pods.cluster.hosts["redis"] = pods.play("StatefulSet", "redis", "redis-0")
    producer = pods.play("Deployment", "producer", sidecar={"name": "sandbox", "command": SANDBOX, "ports": []})
    workers = [pods.play("Deployment", "worker", f"worker-{number}") for number in (1, 2)]

    def ready() -> bool:
        urls = [f"http://{producer}:8080", *(f"http://{worker}:8081" for worker in workers)]
        return all(pods.get(f"{url}/readyz").get("status") in {"ready", "degraded"} for url in urls)

    until(ready, "producer and workers are ready")
    count = "from sqlalchemy import create_engine as c; import os; print(*c(os.environ['DATABASE_URL']).connect()"
    count += ".exec_driver_sql('SELECT count(*), count(DISTINCT email_id) FROM emails').one())"

    def stored() -> str:
        return pods.inside("producer-producer", "python", "-c", count).stdout.strip()

    until(lambda: stored() == "300 300", "the mail of the sandbox is in PostgreSQL")
    pods.done_by("exec", "producer-producer", "python", "-c", DELIVER_LARGE)
    until(lambda: stored() == "301 301", "a large message came by the bucket")

    assert pods.inside("producer-producer", "redis-cli", "-h", "redis", "ping").stdout.strip() == "PONG"
    _operators_commands(pods)
    _pages(pods)
    # A worker that is killed, and one that is stopped.
    pods.done_by("kill", "--signal=KILL", "worker-1-worker")
    pods.done_by("pod", "stop", "--time=45", "worker-2")
    code = pods.done_by("container", "inspect", "--format={{.State.ExitCode}}", "worker-2-worker").strip()
    assert code == "0"

    code, said = _run_job(pods, "backup")
    assert code == 0, said
    assert list((pods.cluster.folder / "claims" / "backups").glob("*.tar"))
    # The mailbox is in the producer's pod, where the command of the other job finds it; the job itself gets as far.
    code, said = _run_job(pods, "reconcile")
    assert (code, "cannot connect to the IMAP server" in said) == (2, True), said
    job = pods.cluster.manifests["CronJob", "reconcile"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    command = job["containers"][0]["command"]
    try:
        until(lambda: pods.inside("producer-producer", *command).returncode == 0, "the command of the job finds no gap")
    except AssertionError as error:
        last = pods.inside("producer-producer", *command)
        raise AssertionError(f"{command}: {last.returncode} {last.stdout[-2000:]}{last.stderr[-2000:]}") from error


def _pages(pods: Pods) -> None:
    address = pods.play("Deployment", "web")
    until(
        lambda: pods.space.call("curl", "-sSf", f"http://{address}:8070/healthz").returncode == 0,
        "the pages are served",
    )
    link = pods.inside("web-web", "email-ingestion", "web", "login-link").stdout.splitlines()[-1]
    assert link.startswith("http://127.0.0.1:8070/login/")  # as `kubectl port-forward` makes it
    come_in(link.replace("127.0.0.1", address), pods.space.call)
    assert "Read-only file system" in pods.inside("web-web", "touch", "/app/x").stderr


def _run_job(pods: Pods, job: str) -> tuple[int, str]:
    """Its exit code, and what it said."""
    pods.play("CronJob", job)
    container = f"{job}-{job}"
    status = ("container", "inspect", "--format={{.State.Status}}", container)
    # "stopped" until Podman has cleaned up after it, which it may fail to do on a busy machine.
    until(lambda: pods.done_by(*status).strip() in {"exited", "stopped"}, f"the job {job} ends")
    code = pods.done_by("container", "inspect", "--format={{.State.ExitCode}}", container)
    return int(code), pods.call("logs", container).stderr


def _operators_commands(pods: Pods) -> None:
    for command in (
        "doctor",
        "status",
        "dlq stats",
        "incident open pods --severity P3",
        "check queue",
        "backup",
        "errors",
    ):
        done = pods.inside("producer-producer", "email-ingestion", *command.split())
        text = done.stdout + done.stderr
        assert done.returncode in ({2} if command == "errors" else {0, 1}), f"{command}: {text}"
        assert "Read-only" not in text, f"{command}: {text}"
        assert "Traceback" not in text, f"{command}: {text}"
    assert "kubectl logs" in text
    assert "incident open" in pods.inside("producer-producer", "email-ingestion", "audit", "list").stdout
    assert "incident open" in (pods.cluster.folder / "claims" / "producer-data" / "audit.log").read_text()
    assert "Read-only file system" in pods.inside("worker-1-worker", "touch", "/app/x").stderr
    for container in ("producer-producer", "worker-1-worker"):
        assert pods.inside(container, "python", "healthcheck.py").returncode == 0
