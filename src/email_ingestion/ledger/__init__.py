"""The ledger: the database of delivered messages, and the only proof that a message was delivered.

    emails        one row for each identity; its primary key is what makes an effect happen once
    attachments   the parts of each message, by reference
    places        further locations of a message on its server
    purged        identities that an operator gave up by purging their dead letters
    contents      raw messages and attachments up to the threshold, by their SHA-256, zstd-compressed
    deliveries    the deliveries to each further sink: waiting, delivered or dead

A message is written in one transaction; only its `deliveries` and labels change afterwards. This module imports
nothing, so that a process which needs no database does not load SQLAlchemy.
"""
