"""Machines and containers for the deployment stage, made from Debian's packages: no image registry is asked.

What fails before anything of ours takes part is not red: `not_tried` says what this machine lacks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.servers.processes import ROOT

SUITE = "trixie"  # its Python is the 3.13 of our image
PACKAGES = (
    *("python3", "python3-venv", "ca-certificates", "redis-server", "curl", "procps", "iproute2"),
    *("systemd", "systemd-sysv", "dbus", "sudo", "git", "logrotate"),
)
DOCKER_PACKAGES = (
    *("docker.io", "docker-cli", "docker-compose", "iptables", "iproute2", "ca-certificates"),
    *("curl", "procps"),  # for the blocks of the runbooks
)
PATIENCE = 300.0  # seconds until a wait is given up: many processes share two cores here
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
NETWORK_TROUBLE = ("Temporary failure in", "Could not resolve", "Could not fetch URL", "Failed to fetch", "Read timed")
TEMPLATES = Path("/usr/share/prometheus/alertmanager")  # Debian's alertmanager does not start without them
PYTHON_IMAGE = "docker.io/library/python:3.13-slim-bookworm"
APP_IMAGE = "docker.io/library/email-ingestion:latest"
# Official images, and what stands in for them: their users, folders and commands, and Debian's programs.
STAND_INS = {
    "docker.io/library/redis:7.4-bookworm": """
        RUN rm -rf /var/lib/redis /etc/redis && mkdir /etc/redis /data && chown 999:999 /data
        VOLUME /data
        CMD ["redis-server"]""",
    "docker.io/prom/prometheus:v3.5.0": """
        COPY prometheus /bin/prometheus
        RUN mkdir /etc/prometheus /prometheus && chown 65534:65534 /prometheus
        USER 65534
        VOLUME /prometheus
        ENTRYPOINT ["/bin/prometheus"]""",
    "docker.io/prom/alertmanager:v0.28.1": """
        COPY prometheus-alertmanager /bin/alertmanager
        COPY templates /usr/share/prometheus/alertmanager
        RUN mkdir /etc/alertmanager /alertmanager && chown 65534:65534 /alertmanager
        USER 65534
        VOLUME /alertmanager
        ENTRYPOINT ["/bin/alertmanager"]
        CMD ["--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager"]""",
    # No Grafana is to be had: this one only takes its place.
    "docker.io/grafana/grafana:12.1.1": """
        RUN mkdir -p /var/lib/grafana/dashboards && chown -R 472:0 /var/lib/grafana
        USER 472
        ENTRYPOINT ["sleep", "infinity"]""",
}


def not_tried(reason: str) -> NoReturn:
    pytest.skip(f"not tried: {reason}")


def until(true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until `true` returns something true, and return it; asking is dear here, so twice a second."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)
    return value


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it says nothing"


def call(
    *words: str | Path, seconds: float = 600, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=os.environ | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def done_by(*words: str | Path, seconds: float = 600, **more) -> str:
    """The standard output of a command that must succeed."""
    done = call(*words, seconds=seconds, **more)
    assert done.returncode == 0, (
        f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    )
    return done.stdout


def come_in(link: str, run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Enter the web pages by a link, as a browser on that machine does: by the button on the page that it leads to."""
    curl = ("curl", "-sS", "--max-time", "60")
    assert "<form" in run(*curl, link).stdout, link
    mail = run(*curl, "--location", "--cookie", "", "--data", "goal=/mail", link).stdout  # keeps cookies meanwhile
    assert "Log out" in mail, mail[-3000:]
    assert '<a href="/mail/' in mail, mail[-3000:]  # what came last


class DebianRoot:
    """A folder with a small Debian, being made while other things are done."""

    def __init__(self, folder: Path, packages: tuple[str, ...]) -> None:
        self.path = folder
        self._making: subprocess.Popen[str] | None = None
        self._ready = (folder / CERTIFICATES).exists()  # left by an earlier run
        if not self._ready and shutil.which("mmdebstrap"):
            excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
            self._making = subprocess.Popen(
                [
                    "mmdebstrap",
                    "--quiet",
                    "--variant=minbase",
                    *excluded,
                    "--dpkgopt=force-unsafe-io",  # nobody needs it after a power cut
                    f"--include={','.join(packages)}",
                    SUITE,
                    folder,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def made(self) -> Path:
        """The folder, or the reason why this machine cannot make it."""
        if self._ready:
            return self.path
        if self._making is None:
            not_tried("mmdebstrap is not installed (Debian: apt-get install mmdebstrap)")
        output, _ = self._making.communicate(timeout=1200)
        if self._making.returncode:
            not_tried(f"mmdebstrap can make no Debian here: {last_line(output)}")
        if Path("/", CERTIFICATES).exists():  # a machine behind a proxy has certificates of its own
            shutil.copy(Path("/", CERTIFICATES), self.path / CERTIFICATES)
        (self.path / "etc" / "pip.conf").write_text(_pip_conf())
        python = self.path / "usr" / "bin" / "python"
        if (self.path / "usr" / "bin" / "python3").exists() and not python.exists():
            python.symlink_to("python3")
        self._ready = True
        return self.path

    def close(self) -> None:
        if self._making and self._making.poll() is None:
            self._making.terminate()
            self._making.communicate()


def _pip_conf() -> str:
    """How this machine reaches a package index."""
    system = Path("/etc/pip.conf")
    text = system.read_text() if system.exists() else f"[global]\ncert = /{CERTIFICATES}\n"
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "TRUSTED_HOST"):
        if value := os.environ.get(f"PIP_{name}"):
            text += f"{name.lower().replace('_', '-')} = {value}\n"
    return text


def copy_checkout(folder: Path) -> Path:
    """The files of this project, as they are now, without what is not in git."""
    folder.mkdir(parents=True, exist_ok=True)
    # Whoever owns the checkout: CI may run as another user.
    git = ("git", "-c", "safe.directory=*", "-C", ROOT)
    listed = call(*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        not_tried(f"this is no checkout of git: {last_line(listed.stderr)}")
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)
    done_by("chmod", "-R", "a+rX", folder)
    return folder


class Namespaces:
    """A process with mounts, network and processes of its own; others are started beside it, and end when it ends."""

    def __init__(self, script: str, log: Path) -> None:
        """Raises no error: `alive` tells whether there are such namespaces here."""
        self._log = log
        with log.open("wb") as file:
            self._outer = subprocess.Popen(
                ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-euc", script],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def alive(self) -> bool:
        return self._outer.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def _pid(self) -> str:
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        (pid,) = until(lambda: children.read_text().split(), "the namespaces are there")
        return pid

    def words(self, *words: str | Path, folder: str = "/") -> list[str]:
        """The words of a command that runs in there."""
        inside = ["env", "-C", folder, *map(str, words)]
        return ["nsenter", "--target", self._pid, "--mount", "--net", "--pid", "--", *inside]

    def beside(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine in the network in there."""
        return call("nsenter", "--target", self._pid, "--net", "--", *words)

    def get(self, url: str) -> str:
        """What is served in there, as somebody on that machine gets it."""
        done = self.beside("curl", "-sS", "--max-time", "20", url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, *words: str | Path, folder: str = "/", seconds: float = 600) -> subprocess.CompletedProcess[str]:
        return call(*self.words(*words, folder=folder), seconds=seconds)

    def done_by(self, *words: str | Path, folder: str = "/", seconds: float = 600) -> str:
        return done_by(*self.words(*words, folder=folder), seconds=seconds)

    def close(self) -> None:
        self._outer.kill()
        self._outer.wait()


class Podman:
    """Podman with images, containers and settings of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]\n'
            f'[engine]\ntmp_dir = "{folder}/tmp"\nruntime = "runc"\n'
            'cgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            '[network]\nnetwork_backend = "netavark"\n'
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
        )
        self.environment = {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "TMPDIR": str(folder),
        }

    def call(self, *words: str | Path, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        return call("podman", *words, seconds=seconds, environment=self.environment)

    def done_by(self, *words: str | Path, seconds: float = 600) -> str:
        return done_by("podman", *words, seconds=seconds, environment=self.environment)

    def restart(self) -> bool:
        """Let Podman take all containers for ended, as after a boot; returns whether it was in use."""
        was_in_use = (self.folder / "tmp").exists()
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        return was_in_use

    def import_root(self, root: Path, name: str) -> None:
        """Make an image of a folder; where containers cannot run here, say so."""
        if self.call("image", "exists", name).returncode == 0:
            return
        archive = self.folder / "root.tar"
        done_by("tar", "-C", root, "--exclude=./var/lib/apt/lists/*", "-cf", archive, ".")
        done = self.call("import", archive, name)
        archive.unlink()
        if done.returncode:
            not_tried(f"podman can make no image here: {last_line(done.stderr)}")
        done = self.call("run", "--rm", "--network=host", name, "true")
        if done.returncode:
            not_tried(f"no container runs here: {last_line(done.stderr)}")

    def build(self, checkout: Path, name: str = APP_IMAGE) -> None:
        """Build our image from its Dockerfile; only the packages of PostgreSQL's own archive are left out."""
        words = ["build", "--format=docker", "--pull=never", "--network=host", "--build-arg=POSTGRESQL_CLIENT=debian"]
        done = self.call(*words, "-f", checkout / "deploy/docker/Dockerfile", "-t", name, checkout, seconds=1200)
        if done.returncode and any(trouble in done.stdout + done.stderr for trouble in NETWORK_TROUBLE):
            not_tried(f"the image cannot be built without a network: {last_line(done.stderr)}")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def build_from(self, name: str, containerfile: str, files: Mapping[str, Path], base: str = PYTHON_IMAGE) -> None:
        folder = self.folder / "context"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for target, source in files.items():
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / target)
        (folder / "Containerfile").write_text(f"FROM {base}\n" + "\n".join(map(str.strip, containerfile.splitlines())))
        self.done_by("build", "--format=docker", "--pull=never", "--network=host", "-t", name, folder)
        shutil.rmtree(folder)

    def build_stand_ins(self) -> list[str]:
        """Build those whose programs this machine has; returns their names."""
        programs = {name: shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")}
        found = {name: Path(path) for name, path in programs.items() if path} | {"templates": TEMPLATES}
        made = []
        for name, text in STAND_INS.items():
            wanted = re.findall(r"COPY (\S+) ", text)
            if all(each in found and found[each].exists() for each in wanted):
                self.build_from(name, text, {each: found[each] for each in wanted})
                made.append(name)
        return made

    def close(self) -> None:
        self.call("pod", "rm", "--all", "--force", "--time=0")
        self.call("rm", "--all", "--force", "--time=0")


DOCKERD = r"""
mount --make-rprivate /
mount --bind {root} {root}
mount -t proc proc {root}/proc
mount --rbind /sys {root}/sys
mount --rbind /dev {root}/dev
mount -t tmpfs tmpfs {root}/run
mkdir -p {root}/srv/email-ingestion {root}/oldroot
mount --bind {checkout} {root}/srv/email-ingestion
cd {root}
pivot_root . oldroot
cd /
umount -l /oldroot
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward || true
dockerd -H unix:///run/docker.sock --exec-opt native.cgroupdriver=cgroupfs --storage-driver overlay2 \
    --cgroup-parent={cgroup} &
wait $!
"""


@contextmanager
def docker_daemon(root: Path, checkout: Path, log: Path) -> Iterator[Namespaces]:
    """Docker with Compose, in a Debian and a network of its own; /srv/email-ingestion is the checkout."""
    cgroup = f"/email-ingestion-{os.getpid()}"
    space = Namespaces(DOCKERD.format(root=root, checkout=checkout, cgroup=cgroup), log)
    try:
        with suppress(AssertionError):
            until(lambda: not space.alive or space.call("docker", "version").returncode == 0, "dockerd answers")
        if not space.alive or space.call("docker", "version").returncode:
            not_tried(f"no dockerd runs here: {last_line(space.log)}")
        yield space
    finally:
        space.close()
        _remove_cgroups(cgroup.strip("/"))


def _remove_cgroups(name: str) -> None:
    """Remove what Docker leaves of its control groups, once the processes in them have ended."""
    folders = [*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/sys/fs/cgroup", name)]

    def are_gone() -> bool:
        for folder in filter(Path.exists, folders):
            for inner in sorted([folder, *folder.glob("**/")], key=lambda path: -len(path.parts)):
                with suppress(OSError):
                    inner.rmdir()
        return not any(folder.exists() for folder in folders)

    with suppress(AssertionError):
        until(are_gone, "the control groups are empty", 30)
