"""Erasure: messages are removed wherever they are kept, and do not come back.

    choice ─▶ stream, dead letters, database ─▶ tombstones (file, database) ─▶ sinks' files ─▶ rows ─▶ Redis ─▶ contents

The tombstones are written before anything is removed, and the steps may be repeated: an erasure that was killed is
finished by giving it again. It runs beside producer and workers.
"""
