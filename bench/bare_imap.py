"""The limit of the mailbox side: fetch everything with imapclient, a hundred UIDs at a time, and store nothing."""

from __future__ import annotations

import sys

import imapclient


def main() -> None:
    """`HOST PORT USER PASSWORD`."""
    host, port, user, password = sys.argv[1:5]
    client = imapclient.IMAPClient(host, int(port), ssl=False)
    client._imap.debug = 0  # noqa: SLF001 - at its usual 5 it would be three times as slow
    client.login(user, password)
    client.select_folder("INBOX", readonly=True)
    uids = client.search()
    total = 0
    for start in range(0, len(uids), 100):
        found = client.fetch(uids[start : start + 100], ["BODY.PEEK[]"])
        total += sum(len(data[b"BODY[]"]) for data in found.values())
    client.logout()
    sys.stdout.write(f"{len(uids)} {total}\n")


if __name__ == "__main__":
    main()
