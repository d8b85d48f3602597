"""A PostgreSQL server of one's own: on a Unix socket, in a directory that goes away with it."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy import create_engine, make_url

_PORT = 5432  # names the socket; nothing listens on TCP
_numbers = itertools.count()


def binaries() -> Path | None:
    """Find the directory of initdb and pg_ctl: of the newest Debian package, else of the PATH."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = packaged[-1] if packaged else shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def running_postgres() -> Iterator[str]:
    """Start a server; yields the SQLAlchemy URL of its database `postgres`.

    Without PostgreSQL on this machine the test is skipped, and fails where CI=true.
    """
    where = binaries()
    if where is None:
        _missing()
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as directory:
        user = _unprivileged(Path(directory))
        data = Path(directory) / "data"
        _run(
            where / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N", user=user
        )
        options = f"-k {directory} -c listen_addresses='' -c fsync=off -c max_connections=40"
        _run(where / "pg_ctl", "-D", data, "-w", "-l", f"{directory}/log", "-o", options, "start", user=user)
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={directory}&port={_PORT}"
        finally:
            _run(where / "pg_ctl", "-D", data, "-m", "immediate", "stop", user=user)


@contextmanager
def archiving_postgres(folder: Path, settings: str) -> Iterator[str]:
    """Start a server in `folder`, data in `main`, that keeps its log by `settings`; yields the URL of its database.

    `bin` has a `systemctl` that starts and stops it, and a `sudo` that takes its user.
    """
    where = binaries()
    if where is None:
        _missing()
    user = _unprivileged(folder)
    for name in ("srv/base", "srv/wal", "bin"):
        (folder / name).mkdir(parents=True)
    if user:
        for name in ("srv/base", "srv/wal"):
            shutil.chown(folder / name, user)
    data = folder / "main"
    _run(where / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N", user=user)
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    with (data / "postgresql.conf").open("a") as file:
        file.write(f"\n{settings}\n")
    become = f"setpriv --reuid={user} --regid={user} --clear-groups " if user else ""
    scripts = {
        "sudo": f'#!/bin/sh\nshift 2\ncd /\nPGUSER=postgres exec {become}"$@"\n',
        "systemctl": (
            f"#!/bin/sh\ncd /\nexec {become}{where / 'pg_ctl'} -D {data} -w -m fast -l {folder / 'log'} "
            f'-o "{options}" "$1" </dev/null >/dev/null 2>&1\n'
        ),
    }
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    subprocess.run([folder / "bin" / "systemctl", "start"], check=True)
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}&port={_PORT}"
    finally:
        _run(where / "pg_ctl", "-D", data, "-m", "immediate", "stop", user=user)


@contextmanager
def running_pgbouncer(server: str, pool_mode: str = "transaction") -> Iterator[str]:
    """Start PgBouncer before the server at this URL, with two connections to it; yields the URL through it."""
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    if not Path(program).exists():
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    url = make_url(server)
    with tempfile.TemporaryDirectory(prefix="pgb-", ignore_cleanup_errors=True) as directory:
        user = _unprivileged(Path(directory))
        ini = Path(directory) / "pgbouncer.ini"
        ini.write_text(
            f"[databases]\n* = host={url.query['host']} port={_PORT} user=postgres\n"
            f"[pgbouncer]\nlisten_addr=\nunix_socket_dir={directory}\nlisten_port={_PORT}\nauth_type=any\n"
            f"pool_mode={pool_mode}\ndefault_pool_size=2\nlogfile={directory}/log\n"
        )
        ini.chmod(0o644)  # whatever umask a command of ours left in this process
        process = subprocess.Popen(
            [program, "-q", str(ini)], user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not _answers(Path(directory) / f".s.PGSQL.{_PORT}"):
                assert process.poll() is None, (Path(directory) / "log").read_text()
                time.sleep(0.01)
            yield server.replace(str(url.query["host"]), directory)
        finally:
            process.kill()
            process.wait()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0  # the file is there before anybody listens


def fresh_schema(server: str) -> str:
    """Create an empty schema on this server and return a URL that sees no other; a database would take 300 ms."""
    name = f"test_{next(_numbers)}"
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    engine.dispose()
    return f"{server}&options=-csearch_path%3D{name}"


@contextmanager
def fresh_database(server: str, encoding: str = "UTF8") -> Iterator[str]:
    """Create an empty database on the server at this URL; yields its URL."""
    name = f"test_{next(_numbers)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")
        try:
            yield server.replace("/postgres?", f"/{name}?")
        finally:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


def _missing() -> NoReturn:
    message = "PostgreSQL is not installed (Debian: apt-get install postgresql), so nothing is proven about it"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def _unprivileged(directory: Path) -> str | None:
    """PostgreSQL refuses to run as root: then the user that its package made, or nobody, gets the directory."""
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - not on Windows

    known = {entry.pw_name for entry in pwd.getpwall()}
    user = "postgres" if "postgres" in known else "nobody"
    shutil.chown(directory, user)
    return user


def _run(*command: object, user: str | None) -> None:
    subprocess.run(
        list(map(str, command)), check=True, user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
