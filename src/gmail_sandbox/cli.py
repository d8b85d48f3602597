"""The command line of the sandbox: its options, the files it writes, and running until a signal."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gmail_sandbox.backend import Credentials
from gmail_sandbox.mail_source import BadMailSource
from gmail_sandbox.server import PortTaken, Sandbox, SandboxSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "python -m gmail_sandbox"
_EXAMPLES = """examples:
  {prog} --mail 300 --state data/sandbox.db --write-token data/token.json
  {prog} --mail bulk:200000 --imap-port 0 --ready-file data/sandbox.json
  curl -s http://127.0.0.1:1181/faults
"""


def parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """Return the parser of the sandbox's command line; `prog` is what its help calls the program."""
    new = argparse.ArgumentParser(
        prog=prog,
        description="A Gmail look-alike on loopback: IMAP, OAuth endpoints, control API.",
        epilog=_EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = new.add_argument
    add("--imap-port", type=int, default=1143, metavar="PORT", help="0 lets the system choose (default %(default)s)")
    add("--oauth-port", type=int, default=1180, metavar="PORT", help="default %(default)s")
    add("--control-port", type=int, default=1181, metavar="PORT", help="default %(default)s")
    add("--mail", default="300", metavar="N|bulk:N|DIR|FILE.mbox", help="the first mail (default %(default)s messages)")
    add("--seed", type=int, default=1, help="seed of the sample mail (default %(default)s)")
    add("--state", type=Path, metavar="FILE", help="keep everything here over a restart; then --mail is read once")
    add("--user", default=Credentials.user, metavar="ADDRESS", help="default %(default)s")
    add("--client-id", default=Credentials.client_id, help="default %(default)s")
    add("--client-secret", default=Credentials.client_secret, help="default %(default)s")
    add("--token-life", type=float, default=Credentials.token_life, metavar="SECONDS", help="default %(default)s")
    add(
        "--consent-life", type=float, default=0.0, metavar="SECONDS", help="a consent ends; 604800 as in Testing status"
    )
    add("--app-password", default="", metavar="PASSWORD", help="let LOGIN in with this password")
    add("--tls-cert", type=Path, metavar="FILE", help="speak TLS on the IMAP port with this certificate")
    add("--tls-key", type=Path, metavar="FILE", help="its key, when not in the same file")
    add("--write-token", type=Path, metavar="FILE", help="write an authorized-user token that is already consented")
    add("--ready-file", type=Path, metavar="FILE", help="write ports and PID as JSON once listening")
    return new


def main(argv: Sequence[str] | None = None, *, prog: str = PROGRAM) -> int:
    """Run the sandbox until SIGTERM or SIGINT and return the exit code.

    Args:
        argv: The options; those of the process when it is None.
        prog: What help and errors call the program.
    """
    options = parser(prog).parse_args(argv)
    try:
        return asyncio.run(_run(options))
    except (PortTaken, BadMailSource) as error:
        return _fail(prog, str(error))
    except sqlite3.Error as error:
        return _fail(prog, f"the state file {options.state} cannot be used: {error}")
    except OSError as error:
        return _fail(prog, str(error))


def _fail(prog: str, sentence: str) -> int:
    sys.stderr.write(f"{prog}: {sentence}\n")
    return 2


def settings_of(options: argparse.Namespace) -> SandboxSettings:
    """Return the settings that the parsed options stand for."""
    return SandboxSettings(
        imap_port=options.imap_port,
        oauth_port=options.oauth_port,
        control_port=options.control_port,
        mail=options.mail,
        seed=options.seed,
        state=options.state,
        credentials=Credentials(
            user=options.user,
            client_id=options.client_id,
            client_secret=options.client_secret,
            token_life=options.token_life,
            consent_life=options.consent_life,
            app_password=options.app_password,
        ),
        tls_certificate=options.tls_cert,
        tls_key=options.tls_key,
    )


async def _run(options: argparse.Namespace) -> int:
    sandbox = Sandbox(settings_of(options))
    await sandbox.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(name, stop.set)
        except NotImplementedError:  # Windows: asyncio has no signal handlers there
            signal.signal(name, lambda *_: loop.call_soon_threadsafe(stop.set))
    try:
        if options.write_token is not None:
            write_atomically(options.write_token, sandbox.authorized_user_info())
        if options.ready_file is not None:
            write_atomically(options.ready_file, ready_file(sandbox))
        sys.stdout.write(_greeting(sandbox))
        sys.stdout.flush()
        await stop.wait()
    finally:
        await sandbox.stop()
    return 0


def _greeting(sandbox: Sandbox) -> str:
    return (
        f"IMAP 127.0.0.1:{sandbox.imap_port}  OAuth http://127.0.0.1:{sandbox.oauth_port}  "
        f"control http://127.0.0.1:{sandbox.control_port}  {len(sandbox.backend.account.messages)} messages\n"
    )


def ready_file(sandbox: Sandbox) -> dict[str, object]:
    """Return the content of `--ready-file`: process id, ports, account and number of messages."""
    return {
        "pid": os.getpid(),
        "imap_port": sandbox.imap_port,
        "oauth_port": sandbox.oauth_port,
        "control_port": sandbox.control_port,
        "user": sandbox.backend.account.user,
        "messages": len(sandbox.backend.account.messages),
    }


def write_atomically(path: Path, value: dict[str, object]) -> None:
    """Write JSON with mode 0600 so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
