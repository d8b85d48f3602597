"""The worker's loop: from the stream through the parser into the sinks."""

from email_ingestion.worker.loop import Worker

__all__ = ["Worker"]
