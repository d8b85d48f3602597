"""Parse mutations of the corpus: none may raise, take 2 s of CPU or 500 MB, or give a record that is no valid JSON.

    python -m tests.fuzz.mutations --count 1000000 --seed 23

With --bombs, messages of a megabyte in which one token is repeated. The same seed gives the same mutations;
`--first N --count 1` repeats the N-th alone. What is found is written into the directory FOUND, and the exit code is 1
then.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from email_ingestion.email_json import as_json, from_json
from email_ingestion.parsing import parse
from email_ingestion.parsing.defects import Defect
from email_ingestion.records import Envelope
from tests.fuzz.bombs import bomb

CORPUS = Path(__file__).parents[1] / "corpus"
ENVELOPE = Envelope("me", "INBOX", 1, 1, 1, 1, (), (), datetime(2026, 1, 1, tzinfo=UTC), 0, "0" * 64)
CPU_SECONDS = 2.0
HANGING_SECONDS = 20  # of CPU, after which an input is given up
MEMORY = 500 * 1024 * 1024  # bytes
JSON_EVERY = 20  # inputs: the way to JSON and back costs more than parsing
SAID_EVERY = 20_000
LARGE_EVERY = 500  # inputs, one of which may have LARGE bytes
SMALL, LARGE = 100_000, 3_000_000

TOKENS = (
    *(b"\n", b"\r\n", b"\r", b"\n\n", b"\x00", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\x1b$B", b"\x1b(B", b"~{"),
    *(b"--", b"--\n", b"=\n", b"= \n", b"=3D", b"=", b"?=", b"=?", b"=?utf-8?q?", b"=?iso-2022-jp?b?", b"=?utf-8?b?"),
    *(b"Content-Type: multipart/mixed; boundary=x\n\n--x\n", b"Content-Type: message/rfc822\n\n", b"\n--x\n", b"--x--"),
    *(b"Content-Type: text/html; charset=", b"Content-Type: text/enriched\n\n", b"Content-Type: application/ms-tnef\n"),
    *(b"Content-Type: message/delivery-status\n\n", b"Content-Type: application/pkcs7-mime; name=smime.p7m\n"),
    *(b"Content-Transfer-Encoding: base64\n", b"Content-Transfer-Encoding: quoted-printable\n", b"; charset=utf-16"),
    *(b"utf-7", b"iso-2022-kr", b"hz-gb-2312", b"utf-8", b"koi8-r", b"; filename*0*=", b"; name=", b"utf-8''%"),
    *(b"begin 644 a\n", b"`\nend\n", b"=ybegin line=128 size=9 name=a\n", b"=yend size=9\n"),
    *(b"\x78\x9f\x3e\x22", b"{\\rtf1\\fromhtml1 ", b"{\\*\\htmltag64 <p>}", b"\\'e4", b"LZFu", b"\x30\x80\x06\x09"),
    *(b"<b>", b"<div>", b"<table><tr><td>", b"<!--", b"-->", b"<![CDATA[", b"&#xd800;", b"&amp", b"<a b=", b"</"),
    *(b"From: ", b"To: ", b"Date: ", b"Subject: ", b"References: ", b"(", b")", b"<", b">", b'"', b"\\", b",", b";"),
    *(b"@", b":", b" ", b"\t", b"9" * 40, b"Mon, 31 Feb 99999 24:60:60 +9999"),
)


@dataclass
class Found:
    """What went wrong, and the worst of what went well."""

    faults: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, 0)  # CPU seconds, number of the mutation


class Hanging(BaseException):
    """An input outlasted every patience; no parser's `except Exception` keeps it."""


def main(arguments: list[str] | None = None) -> int:
    """Run; return the exit code."""
    options = _options(arguments)
    signal.signal(signal.SIGPROF, _give_up)
    seeds = [path.read_bytes() for path in sorted(CORPUS.glob("*.eml"))]
    found = Found()
    started = time.monotonic()
    for number in range(options.first, options.first + options.count):
        raw = bomb(options.seed, number) if options.bombs else mutation(options.seed, number, seeds)
        for fault in _faults(raw, number, found):
            found.faults[fault] += 1
            options.found.mkdir(parents=True, exist_ok=True)
            (options.found / f"{fault}-{options.seed}-{number}.eml").write_bytes(raw)
            _print(f"mutation {number} of seed {options.seed}: {fault}")
        done = number - options.first + 1
        if done % SAID_EVERY == 0 or done == options.count:
            _say(done, found, time.monotonic() - started)
    return 1 if found.faults else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--bombs", action="store_true", help="what `tests.fuzz.bombs` makes, instead of the corpus")
    parser.add_argument("--seed", type=int, default=23)
    parser.add_argument("--found", type=Path, default=Path("found"), metavar="FOUND")
    return parser.parse_args(arguments)


def mutation(seed: int, number: int, seeds: list[bytes]) -> bytes:
    """Return the `number`-th mutation of a seed."""
    chance = random.Random(f"{seed}:{number}")
    raw = chance.choice(seeds)
    largest = LARGE if number % LARGE_EVERY == 0 else SMALL
    for _ in range(chance.choice((1, 1, 2, 3, 5, 8))):
        raw = _mutate(raw, chance, seeds, largest)[:largest]
    return raw


def _mutate(raw: bytes, chance: random.Random, seeds: list[bytes], largest: int) -> bytes:
    start = chance.randrange(len(raw) + 1)
    end = min(len(raw), start + int(chance.expovariate(1 / 30)))
    piece = raw[start:end]
    kind = chance.randrange(9)
    if kind == 0:
        piece = chance.randbytes(len(piece))
    elif kind == 1:
        piece = b""
    elif kind == 2:
        piece = chance.choice(TOKENS)
    elif kind == 3:
        piece += chance.choice(TOKENS)
    elif kind == 4:
        piece = _repeated(piece or b"a", chance, largest)
    elif kind == 5:
        piece += _repeated(chance.choice(TOKENS), chance, largest)
    elif kind == 6:
        other = chance.choice(seeds)
        cut = chance.randrange(len(other) + 1)
        return raw[:start] + other[cut:]
    elif kind == 7:
        return b"\n".join(_swapped(raw.split(b"\n"), chance))
    else:
        piece = bytes(byte ^ (1 << chance.randrange(8)) for byte in piece[:3]) + piece[3:]
    return raw[:start] + piece + raw[end:]


def _repeated(piece: bytes, chance: random.Random, largest: int) -> bytes:
    times = int(10 ** chance.uniform(0, 3 if largest == SMALL else 5))
    return piece * min(times, largest // len(piece) + 1)


def _swapped(lines: list[bytes], chance: random.Random) -> list[bytes]:
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return lines


def _faults(raw: bytes, number: int, found: Found) -> Iterator[str]:
    before = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, HANGING_SECONDS)
    try:
        email = parse(ENVELOPE, raw)
        found.defects.update(email.defects)
        took = time.process_time() - before
        if number % JSON_EVERY == 0 and from_json(json.loads(json.dumps(as_json(email)).encode("utf-8"))) != email:
            yield "json"
    except Hanging:
        yield "hanging"
        return
    except Exception as error:  # noqa: BLE001 - it is what we look for
        yield type(error).__name__
        return
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    found.slowest = max(found.slowest, (took, number))
    if took > CPU_SECONDS:
        yield "slow"
    if Defect.PARSE_FAILED.value in email.defects:  # an exception, or memory above the limit
        yield "failed"


def _give_up(_signal: int, _frame: object) -> None:
    raise Hanging


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _say(done: int, found: Found, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    slowest, number = found.slowest
    _print(
        f"{done:,} mutations in {seconds:,.0f} s: faults {dict(found.faults) or 'none'}; slowest {slowest:.2f} s of CPU"
        f" (mutation {number}), peak {peak} MB, {len(found.defects)} kinds of defects met"
    )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    sys.exit(main())
