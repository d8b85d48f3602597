"""Incidents: their numbers and folders, what happened and when, and the texts that people send and keep.

`data/incidents/INC-20260131-001/` is the incident log that the runbooks name: `incident.json`, `entries.jsonl` (what
people wrote), `assessment.json`, `evidence/`, and every text as it was printed.
"""
