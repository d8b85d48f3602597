"""The names under which mailboxes appear: system labels, special-use attributes and the account's display language."""

from __future__ import annotations

from dataclasses import dataclass

from gmail_sandbox.message import MessageLocation

INBOX, IMPORTANT, STARRED, SENT, DRAFT = "\\Inbox", "\\Important", "\\Starred", "\\Sent", "\\Draft"
ALL, JUNK, TRASH = "\\All", "\\Junk", "\\Trash"

SYSTEM_LABELS = (INBOX, IMPORTANT, STARRED, SENT, DRAFT)
LOCATION_KEYS = {MessageLocation.ALL: ALL, MessageLocation.SPAM: JUNK, MessageLocation.TRASH: TRASH}
KEY_LOCATIONS = {key: location for location, key in LOCATION_KEYS.items()}

# RFC 6154 attribute of each special mailbox; \Important is Gmail's own addition.
SPECIAL_USE = {
    ALL: "\\All",
    DRAFT: "\\Drafts",
    IMPORTANT: "\\Important",
    SENT: "\\Sent",
    JUNK: "\\Junk",
    STARRED: "\\Flagged",
    TRASH: "\\Trash",
}
XLIST_USE = SPECIAL_USE | {INBOX: "\\Inbox", ALL: "\\AllMail", JUNK: "\\Spam", STARRED: "\\Starred"}

# The small values are those seen on a real account; labels made later count on from here.
FIRST_UIDVALIDITY = {INBOX: 1, DRAFT: 6, SENT: 5, JUNK: 3, TRASH: 2, STARRED: 8, IMPORTANT: 9, ALL: 12}
FIRST_LABEL_UIDVALIDITY = 13

_ORDER = (ALL, DRAFT, IMPORTANT, SENT, JUNK, STARRED, TRASH)
_NAMES = {
    "en": ("All Mail", "Drafts", "Important", "Sent Mail", "Spam", "Starred", "Trash"),
    "it": ("Tutti i messaggi", "Bozze", "Importanti", "Posta inviata", "Spam", "Speciali", "Cestino"),
    "fr": ("Tous les messages", "Brouillons", "Important", "Messages envoyés", "Spam", "Suivis", "Corbeille"),
    "de": ("Alle Nachrichten", "Entwürfe", "Wichtig", "Gesendet", "Spam", "Markiert", "Papierkorb"),
    "ru": ("Вся почта", "Черновики", "Важное", "Отправленные", "Спам", "Помеченные", "Корзина"),
}
LANGUAGES = tuple(_NAMES)


@dataclass(frozen=True)
class AccountSettings:
    """How the owner chose to see the account; kept over a restart with the state."""

    language: str = "en"
    root: str = "[Gmail]"
    all_name: str = ""
    hide_all: bool = False
    max_folder_size: int = 0

    def special_names(self) -> dict[str, str]:
        """Return the full mailbox name of each special key, INBOX first."""
        names = {INBOX: "INBOX"}
        for key, leaf in zip(_ORDER, _NAMES[self.language], strict=True):
            names[key] = f"{self.root}/{leaf}"
        if self.all_name:
            names[ALL] = self.all_name if "/" in self.all_name else f"{self.root}/{self.all_name}"
        return names


class BadLabel(ValueError):
    """A label that IMAP could not carry."""


def canonical_label(label: str) -> str:
    """Spell system labels Gmail's way; a user's label is kept as it is. Raise BadLabel when it cannot be one."""
    if label.upper() == "INBOX":
        return INBOX
    if not label.strip() or any(char < " " or char == "\x7f" for char in label):
        raise BadLabel(f"{label!r} cannot be a label: it is empty or has control characters")
    folded = label.lower()
    for special in (*SYSTEM_LABELS, ALL, JUNK, TRASH):
        if folded == special.lower():
            return special
    return JUNK if folded == "\\spam" else label
