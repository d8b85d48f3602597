"""A backup may come from anywhere: one that is not ours is refused in one sentence, and nothing is written by it."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from email_ingestion.backup import create
from email_ingestion.backup.archive import MANIFEST, read_archive, unpack_archive
from email_ingestion.errors import OperationFailed

CONTENT = b"the copy"
HEAD: dict[str, Any] = {
    "format": "email-ingestion backup",
    "version": 1,
    "made_by": "0.1.0",
    "created_at": "2026-01-31T08:00:00+00:00",
    "redis": {
        "server": "7.2.4",
        "dbsize": 3,
        "key_count": 3,
        "stream_length": 2,
        "pending": 0,
        "dlq_depth": 1,
        "last_ids": {"stream": "1-0"},
        "last_delivered_ids": {"stream/g": "1-0"},
        "digest": "0" * 64,
    },
    "database": {"kind": "sqlite", "schema": "0005", "rows": {"emails": 2}},
    "files": [{"name": "redis.jsonl.zst", "bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}],
}


def member(name: str, content: bytes = b"", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


def pack(path: Path, head: object, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    with tarfile.open(path, "w") as tar:
        for info, content in (member(MANIFEST, raw), *members):
            tar.addfile(info, io.BytesIO(content))
    return path


def changed(*path: str | int, value: object) -> dict[str, Any]:
    """The manifest with another value at a place; DELETED removes it."""
    head = json.loads(json.dumps(HEAD))
    place = head
    for part in path[:-1]:
        place = place[part]
    if value is DELETED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return head


DELETED = object()
FILE = HEAD["files"][0]


def test_what_backup_writes_is_read(tmp_path: Path) -> None:
    archive = read_archive(pack(tmp_path / "a.tar", HEAD, member("redis.jsonl.zst", CONTENT)))
    assert (archive.manifest.redis, archive.manifest.database) == (HEAD["redis"], HEAD["database"])
    (tmp_path / "there").mkdir()
    unpack_archive(archive, tmp_path / "there")
    assert (tmp_path / "there" / "redis.jsonl.zst").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"9" * 5000,
        json.dumps(HEAD).encode() + b" " * 5_000_000,
        *([], None, 5, "x", {}),
        *(changed("format", value=value) for value in ("\x1b[2J", None, 1)),
        *(changed("version", value=value) for value in ("1", None, 2, 1e999, [1])),
        *(changed("created_at", value=v) for v in (5, "yesterday", "2026-01-31", "0001-01-01T00:00:00+14:00", None)),
        *(changed("made_by", value=value) for value in (None, 5, "x" * 1000)),
        *(changed("redis", value=value) for value in (None, [], "x", {})),
        *(changed("redis", name, value=DELETED) for name in HEAD["redis"]),
        *(changed("redis", "stream_length", value=value) for value in ("2", -1, 1.5, 10**30, None, [])),
        *(changed("redis", "partitions", value=value) for value in (0, 65, "1", 10**9, None)),
        *(changed("redis", "last_ids", value=value) for value in ([], {"a": 1}, "x")),
        *(changed("database", value=value) for value in ([], "x", {}, {"kind": "sqlite"})),
        changed("database", "kind", value="oracle"),
        changed("database", "more", value=1),
        *(changed("database", "rows", value=value) for value in ([], {"emails": "2"}, {"x; DROP TABLE emails": 1})),
        *(changed("files", value=value) for value in (None, {}, "x", [5], [FILE] * 11)),
        *(changed("files", 0, "name", value=v) for v in ("../x", "/etc/passwd", "", ".", "a/b", "a\n", "x" * 200, 5)),
        *(changed("files", 0, "bytes", value=value) for value in (-1, "8", None, 2**70)),
        *(changed("files", 0, "sha256", value=value) for value in ("", "x" * 64, None)),
    ],
)
def test_a_hostile_manifest_is_refused_in_one_sentence(tmp_path: Path, head: object) -> None:
    with pytest.raises(OperationFailed) as refused:
        read_archive(pack(tmp_path / "a.tar", head))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "made",
    [
        lambda path: pack(path, HEAD),
        lambda path: pack(path, HEAD, member("redis.jsonl.zst", CONTENT + b"more")),
        lambda path: pack(path, HEAD, member("redis.jsonl.zst", b"changed!")),
        lambda path: pack(path, HEAD, member("redis.jsonl.zst", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        lambda path: pack(path, HEAD, member("redis.jsonl.zst", type=tarfile.LNKTYPE, linkname=MANIFEST)),
        lambda path: pack(path, HEAD, member("redis.jsonl.zst", type=tarfile.FIFOTYPE)),
        lambda path: pack(path, HEAD, member("redis.jsonl.zst", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
        lambda path: pack(path, HEAD, member("redis.jsonl.zst", type=tarfile.DIRTYPE)),
    ],
)
def test_a_member_that_is_not_the_file_of_the_manifest_is_refused(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    archive = read_archive(made(tmp_path / "a.tar"))
    (tmp_path / "there").mkdir()
    with pytest.raises(OperationFailed, match="truncated or damaged and was not used"):
        unpack_archive(archive, tmp_path / "there")


def test_a_manifest_that_is_a_link_or_a_device_is_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.addfile(member(MANIFEST, type=kind, linkname="/dev/zero")[0])
        with pytest.raises(OperationFailed, match="no backup"):
            read_archive(tmp_path / "a.tar")


def test_a_line_without_end_in_a_snapshot_is_given_up_and_long_ones_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create, "MAX_LINE_BYTES", 8 * 2**20)
    lines = [{"a": "x" * size} for size in (1, 3 * 2**20, 0, 2**20 - 9, 2**20)]
    path = tmp_path / "redis.jsonl.zst"
    path.write_bytes(zstandard.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))
    assert list(create.read_snapshot_file(path)) == lines
    path.write_bytes(zstandard.compress(b"[" * (10 * 2**20)))
    with pytest.raises(ValueError, match="line without end"):
        list(create.read_snapshot_file(path))


def block(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header of a tar with whatever in its field of the size."""
    head = bytearray(512)
    for at, text in ((0, name), (100, b"0000600\0"), (108, b"0000000\0"), (116, b"0000000\0"), (124, size)):
        head[at : at + len(text)] = text
    head[136:148], head[148:156], head[156:157], head[257:265] = b"00000000000\0", b" " * 8, kind, b"ustar\x0000"
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


RAW = json.dumps(HEAD).encode()
FIRST = block(MANIFEST.encode(), octal(len(RAW))) + RAW + bytes(-len(RAW) % 512)
SECOND = block(b"redis.jsonl.zst", octal(len(CONTENT))) + CONTENT + bytes(-len(CONTENT) % 512)
END = bytes(1024)
BACKWARDS = (-512).to_bytes(12, "big", signed=True)


@pytest.mark.parametrize(
    "raw",
    [
        FIRST + block(b"redis.jsonl.zst", BACKWARDS) + END,
        FIRST + block(b"other", BACKWARDS) + SECOND + END,
        FIRST + SECOND + block(b"again", BACKWARDS) + END,
        FIRST + block(b"x", octal(0), b"x") * 3000 + SECOND + END,
        FIRST + block(b"L", octal(8**11 - 1), b"L") + SECOND + END,
        FIRST + block(b"x", b"\x80" + (2**70).to_bytes(11, "big"), b"x") + SECOND + END,
        FIRST + SECOND + SECOND + END,
        FIRST + SECOND + block(b"../../escaped", octal(0)) + END,
        FIRST + SECOND + block(b"/etc/escaped", octal(0)) + END,
        FIRST + SECOND + block(MANIFEST.encode(), octal(0)) + END,
        FIRST + block(b"redis.jsonl.zst", octal(0), b"2") + SECOND + END,
        FIRST + block(b"./redis.jsonl.zst", octal(len(CONTENT))) + CONTENT + END,
        FIRST + block(b"S", octal(8**11 - 1), b"S") + SECOND + END,
        FIRST + END,
        FIRST + SECOND[:600],
    ],
)
def test_a_tar_made_to_hurt_is_refused_and_nothing_is_written_outside(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(raw)
    (tmp_path / "there").mkdir()
    before = {path for path in tmp_path.rglob("*") if path.parent != tmp_path / "there"}
    with pytest.raises(OperationFailed) as refused:
        unpack_archive(read_archive(tmp_path / "a.tar"), tmp_path / "there")
    assert str(refused.value).isprintable()
    assert {path for path in tmp_path.rglob("*") if path.parent != tmp_path / "there"} == before


@pytest.mark.parametrize(
    "raw",
    [
        block(MANIFEST.encode(), BACKWARDS) + END,
        block(b"x", octal(0), b"x") * 3000 + FIRST + END,
        block(b"x", octal(8**10), b"x") + FIRST + END,
        *(opener(FIRST + SECOND + END) for opener in (gzip.compress, bz2.compress, lzma.compress, zstandard.compress)),
    ],
)
def test_a_tar_whose_beginning_hurts_or_is_packed_is_no_backup(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(OperationFailed, match="no backup"):
        read_archive(tmp_path / "a.tar")


def test_a_pipe_and_a_device_are_no_backups_and_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    for path in (tmp_path / "a.tar", Path("/dev/zero"), tmp_path):
        with pytest.raises(OperationFailed):
            read_archive(path)


def test_a_header_that_announces_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(block(b"x", octal(2**30), b"x"))
        file.truncate(2**30 + 4096)
    tracemalloc.start()
    try:
        with pytest.raises(OperationFailed):
            read_archive(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
