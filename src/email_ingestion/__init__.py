"""Pull every message of a mailbox into your own systems, exactly once in effect.

`Retry` and `Reject` are for sinks of your own: see docs/sinks.md.
"""

from email_ingestion.errors import Reject, Retry

__all__ = ["Reject", "Retry", "__version__"]

__version__ = "0.1.0"
