"""What an operator sees: log lines, metrics, status and the HTTP endpoints; all of it fed by events.

It knows events, errors and records handed to it; it asks no dependency anything and decides nothing for a loop.
"""
