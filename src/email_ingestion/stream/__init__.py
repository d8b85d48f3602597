"""The only speaker of Redis: append, take, complete, release, bury; cursors, dead letters and gauges.

It moves messages and knows nothing of IMAP, parsing or sinks.
"""

from email_ingestion.stream.allowance import Allowance
from email_ingestion.stream.burial import Burial
from email_ingestion.stream.census import Census
from email_ingestion.stream.clients import connect
from email_ingestion.stream.connection import RedisLink, check_reachable, open_link, server_url
from email_ingestion.stream.delivery import Delivery
from email_ingestion.stream.gaps import Gaps
from email_ingestion.stream.gauges import Gauges, announce, presences, read_gauges, withdraw
from email_ingestion.stream.graveyard import Graveyard
from email_ingestion.stream.intake import NO_LOAD, End, Entries, Intake, Load
from email_ingestion.stream.keys import GROUP, Keys
from email_ingestion.stream.leases import Leases
from email_ingestion.stream.lockout import Lockout
from email_ingestion.stream.orders import FleetOrders, prove_writable
from email_ingestion.stream.quarantine import Quarantine
from email_ingestion.stream.queue import Queue
from email_ingestion.stream.rehearsals import Receipt, Rehearsals
from email_ingestion.stream.reload import Reload
from email_ingestion.stream.server import ServerFacts, server_facts, write_once
from email_ingestion.stream.snapshot import Tally, read_snapshot

__all__ = [
    "GROUP",
    "NO_LOAD",
    "Allowance",
    "Burial",
    "Census",
    "Delivery",
    "End",
    "Entries",
    "FleetOrders",
    "Gaps",
    "Gauges",
    "Graveyard",
    "Intake",
    "Keys",
    "Leases",
    "Load",
    "Lockout",
    "Quarantine",
    "Queue",
    "Receipt",
    "RedisLink",
    "Rehearsals",
    "Reload",
    "ServerFacts",
    "Tally",
    "announce",
    "check_reachable",
    "connect",
    "open_link",
    "presences",
    "prove_writable",
    "read_gauges",
    "read_snapshot",
    "server_facts",
    "server_url",
    "withdraw",
    "write_once",
]
