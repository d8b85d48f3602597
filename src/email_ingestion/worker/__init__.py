"""The worker's loops: from the stream through the parser into the database, and from there to each further sink."""

from email_ingestion.worker.courier import Courier
from email_ingestion.worker.loop import Worker

__all__ = ["Courier", "Worker"]
