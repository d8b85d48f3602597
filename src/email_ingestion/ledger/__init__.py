"""The database of delivered messages: what is in it was delivered, what is not was not; it knows no Redis and no IMAP.

    emails        one row for each identity; its primary key is what makes an effect happen once
    attachments   the parts of each message, by reference
    places        where else, on its server, a message was found again
    purged        identities an operator gave up, by purging their dead letters
    contents      raw messages and attachments up to the threshold, by their SHA-256, zstd-compressed
    deliveries    what each further sink is owed, and what it has

A message is written in one transaction, and only its `deliveries` change afterwards. Nothing is imported here: what
needs no database, such as a producer until it looks for gaps, does without SQLAlchemy.
"""
