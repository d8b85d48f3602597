"""What an operator sees: log lines, metrics, status and the HTTP endpoints; all of it fed by events.

Only `status_collector` contacts a dependency, Redis, in a thread of its own; nothing here decides anything for a loop.
"""
