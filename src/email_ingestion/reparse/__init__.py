"""Yesterday's mail in today's record: parse stored raw messages again and replace what parsing gives."""

from email_ingestion.reparse.live_mail import LiveMail
from email_ingestion.reparse.reparser import Reparser, ReparseSummary

__all__ = ["LiveMail", "ReparseSummary", "Reparser"]
