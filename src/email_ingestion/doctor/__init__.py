"""Looks at everything the system stands on and says what is wrong, why, and what to do next; it mends nothing.

settings ─▶ machine (folders, ports) ─▶ Redis ─▶ database, sinks ─▶ each account (client, token, server) ─▶ clock
"""
