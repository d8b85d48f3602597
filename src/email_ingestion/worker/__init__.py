"""The worker's loops: from the stream through the parser into the database, and from there to each further sink."""

from email_ingestion.worker.loop import Worker
from email_ingestion.worker.sink_dispatcher import SinkDispatcher

__all__ = ["SinkDispatcher", "Worker"]
