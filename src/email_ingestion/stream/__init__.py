"""The Redis side of mail, and the only room that speaks to Redis: append, read, ack, dead-letter; cursors and gauges.

It moves messages and knows nothing of IMAP, parsing or sinks.
"""

from email_ingestion.stream.account_limits import DownloadQuota, Lockout, Miscounts
from email_ingestion.stream.appender import EMPTY_BACKLOG, Appender, CursorEnd, PackedEntries, StreamBacklog
from email_ingestion.stream.clients import connect
from email_ingestion.stream.codec import Delivery
from email_ingestion.stream.consumer import Consumer
from email_ingestion.stream.dead_letters import DeadLetterQueue
from email_ingestion.stream.entry_scan import EntryScanner
from email_ingestion.stream.gauges import (
    Gauges,
    announce_presence,
    count_waiting,
    forget_process,
    read_gauges,
    read_presences,
    withdraw_presence,
)
from email_ingestion.stream.keys import GROUP, Keys
from email_ingestion.stream.leases import Leases
from email_ingestion.stream.quarantine import Quarantine, QuarantinedMessage, Suspects, quarantined_mailboxes
from email_ingestion.stream.redis_link import RedisLink, check_reachable, open_link, server_url
from email_ingestion.stream.server_info import (
    ServerInfo,
    check_writable,
    read_server_info,
    serves_without_password,
    write_new_key,
)
from email_ingestion.stream.shared_overrides import SharedOverrides
from email_ingestion.stream.snapshot import Tally, keys_aside, read_snapshot
from email_ingestion.stream.snapshot_restore import SnapshotRestore
from email_ingestion.stream.synthetic import Receipt, SyntheticMessages

__all__ = [
    "EMPTY_BACKLOG",
    "GROUP",
    "Appender",
    "Consumer",
    "CursorEnd",
    "DeadLetterQueue",
    "Delivery",
    "DownloadQuota",
    "EntryScanner",
    "Gauges",
    "Keys",
    "Leases",
    "Lockout",
    "Miscounts",
    "PackedEntries",
    "Quarantine",
    "QuarantinedMessage",
    "Receipt",
    "RedisLink",
    "ServerInfo",
    "SharedOverrides",
    "SnapshotRestore",
    "StreamBacklog",
    "Suspects",
    "SyntheticMessages",
    "Tally",
    "announce_presence",
    "check_reachable",
    "check_writable",
    "connect",
    "count_waiting",
    "forget_process",
    "keys_aside",
    "open_link",
    "quarantined_mailboxes",
    "read_gauges",
    "read_presences",
    "read_server_info",
    "read_snapshot",
    "server_url",
    "serves_without_password",
    "withdraw_presence",
    "write_new_key",
]
