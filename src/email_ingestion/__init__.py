"""Pull every message of a mailbox into your own systems, exactly once in effect."""

__version__ = "0.1.0"
