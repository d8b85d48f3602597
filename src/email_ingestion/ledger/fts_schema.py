"""The SQL of the full-text indices: over subject, sender and text, and over the file names of attachments.

The migrations 0001, 0007 and 0008 use it too. To change it, copy the present text into them and write a new one.

Only the first 200,000 characters of a message are searchable. With 4 bytes for a character, and 4 for each word in
place of the space after it, a tsvector stays at 800 kB where 1 MiB is allowed: no message can be refused for it.
Both databases split words at everything that is neither letter nor digit, and ignore case and diacritics.
"""

from __future__ import annotations

# Contentless, so that no text lies in the database twice. The map gives each message an integer that lasts:
# VACUUM renumbers the implicit rowids of `emails`.
_SQLITE = (
    "CREATE TABLE email_docs (doc INTEGER PRIMARY KEY AUTOINCREMENT, email_id TEXT NOT NULL UNIQUE)",
    """CREATE VIRTUAL TABLE email_words
       USING fts5(subject, sender, body, content='', tokenize='unicode61 remove_diacritics 2')""",
    # Words waiting in memory for the commit: 1 MiB, the default, is less than a batch and costs a third of the rate.
    "INSERT INTO email_words (email_words, rank) VALUES ('hashsize', 4194304)",
    """CREATE TRIGGER emails_inserted AFTER INSERT ON emails BEGIN
         INSERT INTO email_docs (email_id) VALUES (new.email_id);
         INSERT INTO email_words (rowid, subject, sender, body)
         SELECT doc, new.subject, coalesce(new.from_name, '') || ' ' || coalesce(new.from_addr, ''),
                substr(new.text, 1, 200000)
         FROM email_docs WHERE email_id = new.email_id;
       END""",
    # A contentless index forgets a row only when told again what was in it (fts5.html, section 6.4).
    """CREATE TRIGGER emails_deleted AFTER DELETE ON emails BEGIN
         INSERT INTO email_words (email_words, rowid, subject, sender, body)
         SELECT 'delete', doc, old.subject, coalesce(old.from_name, '') || ' ' || coalesce(old.from_addr, ''),
                substr(old.text, 1, 200000)
         FROM email_docs WHERE email_id = old.email_id;
         DELETE FROM email_docs WHERE email_id = old.email_id;
       END""",
)

# Punctuation becomes space because the parser would keep addresses, URLs and hyphenated words in one piece, some of
# them twice; by a regular expression because translate() takes 30 times as long. Nothing in the function may need
# a search_path: pg_restore runs without one.
_POSTGRESQL = (
    r"""CREATE OR REPLACE FUNCTION email_words(subject text, from_name text, from_addr text, body text) RETURNS tsvector
        LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
          SELECT to_tsvector('pg_catalog.simple', left(
            regexp_replace(
              regexp_replace(
                normalize(left(coalesce(subject, '') || ' ' || coalesce(from_name, '') || ' '
                               || coalesce(from_addr, '') || ' ' || coalesce(body, ''), 200000), NFD),
                '[\u0300-\u036f]+', '', 'g'),
              '[!-/:-@\[-`{-~]', ' ', 'g'),
            200000))
        $$""",
    "CREATE INDEX emails_words ON emails USING gin (email_words(subject, from_name, from_addr, text))",
)

FTS_STATEMENTS = {"sqlite": _SQLITE, "postgresql": _POSTGRESQL}

# A row for each attachment: its message's number, and its position in the lowest 20 bits.
_SQLITE_ATTACHMENTS = (
    """CREATE VIRTUAL TABLE attachment_words
       USING fts5(filename, content='', tokenize='unicode61 remove_diacritics 2')""",
    """CREATE TRIGGER attachments_inserted AFTER INSERT ON attachments WHEN new.filename IS NOT NULL BEGIN
         INSERT INTO attachment_words (rowid, filename)
         SELECT (doc << 20) + new.position, new.filename FROM email_docs WHERE email_id = new.email_id;
       END""",
    """CREATE TRIGGER attachments_deleted AFTER DELETE ON attachments WHEN old.filename IS NOT NULL BEGIN
         INSERT INTO attachment_words (attachment_words, rowid, filename)
         SELECT 'delete', (doc << 20) + old.position, old.filename FROM email_docs WHERE email_id = old.email_id;
       END""",
)
_POSTGRESQL_ATTACHMENTS = (
    "CREATE INDEX attachments_words ON attachments USING gin (email_words(filename, NULL, NULL, NULL))",
)

ATTACHMENT_FTS_STATEMENTS = {"sqlite": _SQLITE_ATTACHMENTS, "postgresql": _POSTGRESQL_ATTACHMENTS}

# Labels change often, and no word with them.
_SQLITE_UPDATES = (
    """CREATE TRIGGER emails_updated AFTER UPDATE OF subject, from_name, from_addr, text ON emails
       WHEN old.subject IS NOT new.subject OR old.from_name IS NOT new.from_name
         OR old.from_addr IS NOT new.from_addr OR old.text IS NOT new.text BEGIN
         INSERT INTO email_words (email_words, rowid, subject, sender, body)
         SELECT 'delete', doc, old.subject, coalesce(old.from_name, '') || ' ' || coalesce(old.from_addr, ''),
                substr(old.text, 1, 200000)
         FROM email_docs WHERE email_id = old.email_id;
         INSERT INTO email_words (rowid, subject, sender, body)
         SELECT doc, new.subject, coalesce(new.from_name, '') || ' ' || coalesce(new.from_addr, ''),
                substr(new.text, 1, 200000)
         FROM email_docs WHERE email_id = new.email_id;
       END""",
)

UPDATE_FTS_STATEMENTS: dict[str, tuple[str, ...]] = {"sqlite": _SQLITE_UPDATES, "postgresql": ()}
