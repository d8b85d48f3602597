"""The crash matrix: breaks the running system in every way we know and proves that no mail is lost or doubled.

    python -m bench.crash_matrix --database both --rounds 20 --messages 500 --write docs/reliability.md

For every fault: `world` brings up a mailbox, a Redis with AOF, producer and workers; in each round mail arrives, the
fault of `catalogue` strikes at random instants, everything settles, and `law` compares what is where.
"""
