"""Backups of Redis and of the ledger: made while everybody works, loaded before they count, restored without loss.

    Redis ──snapshot──▶ redis.jsonl.zst ┐                              ┌▶ a scratch server (rehearsal)
    ledger ──copy─────▶ database.…      ┴─▶ one archive ──▶ proven ──▶ ┴▶ Redis in one step; ledger as a union

Redis is read first: what leaves the stream meanwhile is in the ledger that is copied after it. Settings and tokens are
left out, and so are blobs, which are files of their own that never change.
"""
