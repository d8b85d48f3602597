"""The web process: pages for people and a read API for programs; it may be away without any harm.

It reads the ledger, Redis and the ports of the other processes, each with a short patience, and says what it does not
know. What it changes, it changes as the commands do: through the same rooms, and with a line in the audit log.
"""
