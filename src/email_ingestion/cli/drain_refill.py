"""`drain` and `refill`: move the queue into a file and back, for a Redis that must be emptied or moved."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from email_ingestion.cli.common import audit_read, audited, open_redis
from email_ingestion.cli.exit_codes import NEGATIVE, OK, redis_remedy
from email_ingestion.cli.output import Json, say, show
from email_ingestion.cli.progress_bars import progress
from email_ingestion.errors import OperationFailed, RedisConnectionError
from email_ingestion.stream.dead_letter_file import read_entries, verify_file, write_entries
from email_ingestion.stream.queue_dump import QueueDump, entry_bytes

FORM = "email-ingestion queue"


def drain(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new file.", show_default=False)],
    limit: Annotated[int | None, typer.Option("--max", min=1, help="At most so many, the oldest.")] = None,
    as_json: Json = False,
) -> int:
    """Write the queue to a file (mode 0600, on the disk and read back), then take exactly that out of Redis.

    The file ends with the count and the SHA-256 of what it holds. Pause the producer first, or it goes on filling.
    Large messages stay in the blob store (BLOB_URL); the file names them. Exit code 1 when the queue is empty.

    Examples:
      email-ingestion pause producer --ttl 2h
      email-ingestion drain --output queue.jsonl
      email-ingestion drain --output part.jsonl --max 10000
    """
    settings, link = open_redis("drain")
    queue = QueueDump(link)
    depth = queue.depth()
    if not depth:
        show([], as_json=as_json)
        say("the queue is empty")
        return NEGATIVE
    audit_read(settings.log_dir, "drain", min(depth, limit or depth), (), file=str(output))
    with audited(settings.log_dir, "drain", {"file": str(output)}) as outcome:
        origin = {"drained_at": datetime.now(UTC).isoformat(), "stream": link.keys.stream}
        with progress("writing", min(depth, limit or depth)) as advance:
            entries = islice(queue.entries(), limit)
            write_entries(output, entries, origin, lambda: advance(1), form=FORM)
        kept = verify_file(output, form=FORM)
        outcome |= {"written": len(kept.letters), "sha256": kept.sha256, "taken_out": 0}
        with progress("taking out", len(kept.letters)) as advance:
            sizes = ((entry_id, entry_bytes(fields)) for entry_id, fields in read_entries(output))
            for gone in queue.remove(sizes):
                outcome["taken_out"] += gone
                advance(gone)
        outcome["left"] = queue.depth()
    show([{"file": str(output), **outcome}], as_json=as_json)
    return OK


def refill(
    file: Annotated[Path, typer.Argument(help="A file of `drain`.", show_default=False)], as_json: Json = False
) -> int:
    """Put a drained queue back into Redis. A message that is there already, or is a dead letter, is not added again.

    One that was delivered meanwhile is recognized by the database, one that was erased is left out. A damaged or
    incomplete file is refused.

    Examples:
      email-ingestion refill queue.jsonl
    """
    from email_ingestion.app.erasures import erased_names  # noqa: PLC0415 - with it come the sinks

    kept = verify_file(file, form=FORM)
    settings, link = open_redis("refill")
    details = {"file": str(file), "sha256": kept.sha256, "held": len(kept.letters)}
    with audited(settings.log_dir, "refill", details) as outcome:
        outcome |= {"added": 0, "erased": 0}
        try:
            with progress("putting back", len(kept.letters)) as advance, erased_names(settings) as erased:
                queue = QueueDump(link)
                for looked_at, added in queue.refill(read_entries(file), erased):
                    outcome |= {"added": outcome["added"] + added, "erased": queue.left_out}
                    advance(looked_at)
        except RedisConnectionError as error:
            remedy = redis_remedy(str(error)) or "mend that"
            raise OperationFailed(
                f"{str(error).rstrip('.')}; {outcome['added']} were put back: {remedy}, "
                "then give the same command again"
            ) from error
    show([{"file": str(file), "held": len(kept.letters), **outcome}], as_json=as_json)
    return OK
