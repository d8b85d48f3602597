"""A real Cyrus of one's own, beside a Dovecot: a server of another family, with the oddities of its installations.

Debian's `cyrus-imapd` and `dovecot-imapd` exclude each other as packages, not as programs: `scripts/test.sh` unpacks
the one into a folder (`UNPACKED`) and installs what it needs. It starts as root, and then runs as the user `cyrus`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imapclient
import pytest

from tests.servers.ports import free_port, wait_for_port

USER = "alice"
PASSWORD = "correct-horse"
UNPACKED = Path("/var/tmp/email-ingestion-cyrus")
MASTER = Path("/usr/lib/cyrus/bin/master")

IMAPD_CONF = """\
configdirectory: {folder}/lib
partition-default: {folder}/spool
defaultpartition: default
proc_path: {folder}/proc
mboxname_lockpath: {folder}/lock
idlesocket: {folder}/idle
lmtpsocket: {folder}/lmtp
admins: admin
allowplaintext: yes
virtdomains: off
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_mech_list: PLAIN
sasl_sasldb_path: {folder}/sasldb2
unixhierarchysep: {unixhierarchysep}
altnamespace: {altnamespace}
specialusealways: 0
expunge_mode: immediate
duplicatesuppression: 0
"""

CYRUS_CONF = """\
START {{
}}
SERVICES {{
  imap cmd="{bin}/imapd -C {folder}/imapd.conf" listen="127.0.0.1:{port}" prefork=0
}}
EVENTS {{
}}
DAEMON {{
  idled cmd="{bin}/idled -C {folder}/imapd.conf"
}}
"""


class CyrusServer:
    """`prefix`: folders are `INBOX.…`, as at many hosters; without it they stand beside INBOX, with `/` between."""

    def __init__(self, folder: Path, *, prefix: bool) -> None:
        self.folder = folder
        self.imap_port = free_port()
        self.separator = "." if prefix else "/"
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        programs = _programs()
        values = {
            "folder": self.folder,
            "bin": programs,
            "port": self.imap_port,
            "unixhierarchysep": "no" if self._prefix else "yes",
            "altnamespace": "no" if self._prefix else "yes",
        }
        for name in ("lib", "spool", "proc", "lock"):
            (self.folder / name).mkdir()
        (self.folder / "imapd.conf").write_text(IMAPD_CONF.format(**values))
        (self.folder / "cyrus.conf").write_text(CYRUS_CONF.format(**values))
        for user in (USER, "admin"):
            command = ["/usr/sbin/saslpasswd2", "-p", "-c", "-f", str(self.folder / "sasldb2")]
            subprocess.run([*command, "-u", socket.gethostname(), user], input=PASSWORD.encode(), check=True)
        for path in (self.folder, *self.folder.rglob("*")):
            shutil.chown(path, "cyrus", "mail")
        options = ["-C", "imapd.conf", "-M", "cyrus.conf", "-p", "pid", "-L", "master.log", "-D"]
        arguments = [part if part.startswith("-") else str(self.folder / part) for part in options]
        # A session of its own: at its end it sends SIGTERM to its process group, that is to every Cyrus beside it.
        process = self._process = subprocess.Popen(
            [str(MASTER), *arguments], stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for_port(self.imap_port, lambda: process.poll() is None)
        with self.client("admin") as client:
            client.create_folder(f"user{self.separator}{USER}")

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(20)

    @contextmanager
    def client(self, user: str = USER) -> Iterator[imapclient.IMAPClient]:
        with imapclient.IMAPClient("127.0.0.1", self.imap_port, ssl=False) as client:
            client.login(user, PASSWORD)
            yield client

    def create(self, folder: str, *, use: str) -> None:
        """A folder with a special use (RFC 6154), which only `LIST … RETURN (SPECIAL-USE)` tells."""
        with self.client() as client:
            status, texts = client._imap._simple_command("CREATE", f'"{folder}"', f"(USE ({use}))")
            assert status == "OK", texts


def _programs() -> Path:
    """The folder of imapd and idled. Skips where Cyrus cannot be had: it needs root and Debian's packages."""
    if os.geteuid() != 0:
        pytest.skip("Cyrus starts as root only")
    folders = [MASTER.parent, UNPACKED / MASTER.parent.relative_to("/")]
    found = next((folder for folder in folders if (folder / "imapd").is_file()), None)
    if not MASTER.is_file() or found is None:
        pytest.skip(f"there is no Cyrus, or its imapd is not unpacked in {UNPACKED}: scripts/test.sh gets it on Debian")
    return found


@contextmanager
def running_cyrus(*, prefix: bool) -> Iterator[CyrusServer]:
    # Unix socket paths are limited to about 100 bytes: pytest's own directories are too long.
    with tempfile.TemporaryDirectory(prefix="cy-", dir="/tmp", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o711)
        server = CyrusServer(Path(name), prefix=prefix)
        server.start()
        try:
            yield server
        finally:
            server.stop()
