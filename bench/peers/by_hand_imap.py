"""The limit of storing: the bare loop, and each message hashed, compressed and appended, safe against nothing."""

from __future__ import annotations

import hashlib
import sys

import redis
import zstandard
from bare_imap import batches


def main() -> None:
    """`HOST PORT USER PASSWORD REDIS_URL`."""
    compressor = zstandard.ZstdCompressor(level=1)
    client = redis.Redis.from_url(sys.argv[5])
    for batch in batches(*sys.argv[1:5]):
        with client.pipeline(transaction=False) as pipe:
            for raw in batch:
                pipe.xadd("mail", {"sha256": hashlib.sha256(raw).hexdigest(), "raw": compressor.compress(raw)})
            pipe.execute()


if __name__ == "__main__":
    main()
