"""Reading mail over IMAP, never changing it: EXAMINE and BODY.PEEK only.

It speaks to servers and knows nothing of Redis, or of what becomes of the mail.
"""

from email_ingestion.mailbox.imap_mailbox import ImapMailbox
from email_ingestion.mailbox.message_summary import MessageSummary

__all__ = ["ImapMailbox", "MessageSummary"]
