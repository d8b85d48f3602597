"""The limit of fetching: everything with imapclient, a hundred UIDs at a time, and nothing is stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import imapclient


def batches(host: str, port: str, user: str, password: str) -> Iterator[list[bytes]]:
    """Everything in INBOX."""
    client = imapclient.IMAPClient(host, int(port), ssl=False)
    client._imap.debug = 0  # noqa: SLF001 - at its usual 5 it would be three times as slow
    client.login(user, password)
    client.select_folder("INBOX", readonly=True)
    uids = client.search()
    for start in range(0, len(uids), 100):
        found = client.fetch(uids[start : start + 100], ["BODY.PEEK[]"])
        yield [data[b"BODY[]"] for data in found.values()]
    client.logout()


def main() -> None:
    """`HOST PORT USER PASSWORD`."""
    total = sum(len(raw) for batch in batches(*sys.argv[1:5]) for raw in batch)
    sys.stdout.write(f"{total}\n")


if __name__ == "__main__":
    main()
