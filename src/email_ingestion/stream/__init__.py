"""The only speaker of Redis: append, take, complete, release, bury; cursors, dead letters and gauges.

It moves messages and knows nothing of IMAP, parsing or sinks.
"""

from email_ingestion.stream.connection import Link, connect, reach
from email_ingestion.stream.delivery import Delivery
from email_ingestion.stream.gauges import Gauges, announce, read_gauges, withdraw
from email_ingestion.stream.intake import Intake, Load
from email_ingestion.stream.keys import GROUP, Keys
from email_ingestion.stream.queue import Queue

__all__ = [
    "GROUP",
    "Delivery",
    "Gauges",
    "Intake",
    "Keys",
    "Link",
    "Load",
    "Queue",
    "announce",
    "connect",
    "reach",
    "read_gauges",
    "withdraw",
]
