"""What a sink that was added later, or lost its data, is owed: find it, and let the workers deliver it."""

from email_ingestion.resend.resender import Resender, ResendSummary

__all__ = ["ResendSummary", "Resender"]
