"""A real Dovecot of one's own, rootless: XOAUTH2 checked against a token endpoint, and password logins.

It has no X-GM-EXT-1: what passes here works on any IMAP server.
"""

from __future__ import annotations

import getpass
import grp
import os
import pwd
import shutil
import smtplib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.servers.missing import program
from tests.servers.ports import free_port, wait_for_port

USER = "alice@example.com"
PASSWORD = "correct-horse"

CONFIG = """\
base_dir = {run}
state_dir = {run}
instance_name = email-ingestion-test
log_path = {directory}/dovecot.log
protocols = imap lmtp
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
auth_mechanisms = plain login xoauth2 oauthbearer
auth_username_format = %Lu
auth_failure_delay = 0
mail_location = {mail_location}
mail_max_userip_connections = 100
mail_fsync = never
imap_idle_notify_interval = 30 secs
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp_port}
  }}
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {directory}/oauth2.conf
}}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={directory}/home/%u allow_all_users=yes
}}
namespace inbox {{
  inbox = yes
  separator = {separator}
  prefix = {prefix}
}}
"""

OAUTH2 = """\
introspection_mode = post
introspection_url = http://127.0.0.1:{oauth_port}/introspect
username_attribute = email
active_attribute = active
active_value = true
scope = {scope}
"""


class DovecotServer:
    """With a `prefix` folders are `INBOX.…`, as at many hosters; without it they stand beside INBOX.

    With `maildir` it keeps INBOX as a Maildir, in which these files lie from the beginning: names and contents.
    """

    def __init__(
        self, directory: Path, oauth_port: int, scope: str, *, prefix: bool, maildir: Mapping[str, bytes] | None
    ) -> None:
        self.directory = directory
        self.maildir = directory / "home" / USER / "Maildir"
        self._files = maildir
        self.imap_port = free_port()
        self.lmtp_port = free_port()
        self._separator = "." if prefix else "/"
        self._prefix = "INBOX." if prefix else ""
        self._oauth2 = OAUTH2.format(oauth_port=oauth_port, scope=scope)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        dovecot = program("dovecot", "dovecot-imapd dovecot-lmtpd")
        user = pwd.getpwnam("nobody").pw_name if os.geteuid() == 0 else getpass.getuser()
        group = grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
        for name in ("run", "home"):
            (self.directory / name).mkdir(exist_ok=True)
        if self._files is not None:
            for name in ("new", "cur", "tmp"):
                (self.maildir / name).mkdir(parents=True)
            for name, raw in self._files.items():
                (self.maildir / "new" / name).write_bytes(raw)
        values = {
            "directory": self.directory,
            "mail_location": "sdbox:~/sdbox" if self._files is None else "maildir:~/Maildir",
            "run": self.directory / "run",
            "user": user,
            "group": group,
            "imap_port": self.imap_port,
            "lmtp_port": self.lmtp_port,
            "password": PASSWORD,
            "separator": self._separator,
            "prefix": self._prefix,
        }
        (self.directory / "dovecot.conf").write_text(CONFIG.format(**values))
        (self.directory / "oauth2.conf").write_text(self._oauth2)
        if os.geteuid() == 0:
            for path in (self.directory, *self.directory.rglob("*")):
                shutil.chown(path, user, group)
        process = self._process = subprocess.Popen(
            [dovecot, "-F", "-c", str(self.directory / "dovecot.conf")], stderr=subprocess.DEVNULL
        )
        for port in (self.imap_port, self.lmtp_port):
            wait_for_port(port, lambda: process.poll() is None)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(20)

    def deliver(self, messages: Sequence[bytes]) -> None:
        """Hand messages over by LMTP, as a mail server does; they lie in INBOX when this returns."""
        with smtplib.LMTP("127.0.0.1", self.lmtp_port) as session:
            for raw in messages:
                session.sendmail("sender@example.org", [USER], raw)


@contextmanager
def running_dovecot(
    oauth_port: int = 0,
    scope: str = "https://mail.google.com/",
    *,
    prefix: bool = False,
    maildir: Mapping[str, bytes] | None = None,
) -> Iterator[DovecotServer]:
    # Unix socket paths are limited to about 100 bytes: pytest's own directories are too long.
    with tempfile.TemporaryDirectory(prefix="dv-", dir="/tmp", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        server = DovecotServer(Path(name), oauth_port, scope, prefix=prefix, maildir=maildir)
        server.start()
        try:
            yield server
        finally:
            server.stop()
