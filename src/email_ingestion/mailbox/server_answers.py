"""What a mail server's NO, BAD or BYE means: tables of providers' own texts, of response codes and of common phrases.

    provider texts    how one kind of server says it; they come first, for some servers misuse response codes
    response codes    RFC 5530, and those that Gmail and others added
    phrases           what servers say in plain words, in any order of words

The first row that matches decides. A text that no row knows is judged by `imap_errors` from the command it answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from email_ingestion.errors import READ_LENGTH

Meaning = Literal[
    "session_ended",  # reconnect at once
    "locked_out",  # stay away for an hour or more, over restarts too
    "throttled",  # stay away for the time it asks for, else half a minute and longer
    "temporary",  # back off
    "credentials",  # user name, password or token are refused
    "browser",  # the owner must sign in with a browser
    "operator",  # a person must change something, here or at the provider
    "gone",  # there is no such mailbox
    "bug",  # it takes our command for wrong
]


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """What a text that matches `pattern` means, in our words; `remedy` is what a person can do about it."""

    pattern: str
    meaning: Meaning
    says: str
    remedy: str = ""


CHECK_BOTH = "check IMAP_USER and IMAP_PASSWORD; many providers take an app password only, made in their settings"
MAKE_ONE_FOR_APPS = (
    "make an app password in the provider's security settings and set it as IMAP_PASSWORD, or use OAuth2"
)
SWITCH_ON = "switch IMAP on in the settings of the mail account, on the provider's web page"
ASK_ADMINISTRATOR = "ask whoever runs the mail server, and show the server's words"
USE_TLS = "set IMAP_TLS=true and the TLS port, mostly IMAP_PORT=993"
WAIT = "nothing to do: the producer waits by itself"
WAIT_A_DAY = "wait up to 24 hours; the producer waits by itself"
FEWER = "close other mail programs of the account, or read fewer of its mailboxes"
SIGN_IN = "sign in to the account in a browser and confirm that it was you, then run `email-ingestion doctor`"

PROVIDER_TEXTS = (
    # Gmail
    AnswerRule(
        r"exceeded command or bandwidth limits",
        "locked_out",
        "the account is over its limits",
        WAIT_A_DAY,
    ),
    AnswerRule(
        r"disabled for your domain",
        "operator",
        "the Workspace administrator has disabled IMAP",
        "ask for it: Google Admin console > Apps > Google Workspace > Gmail > End User Access > POP and IMAP access",
    ),
    AnswerRule(
        r"not enabled for IMAP",
        "operator",
        "IMAP is switched off for this account",
        "switch it on in Gmail: Settings > Forwarding and POP/IMAP > Enable IMAP",
    ),
    AnswerRule(r"^System Error", "temporary", "the mail server has an error of its own", WAIT),
    # Exchange, Exchange Online and Amazon WorkMail
    AnswerRule(r"Request is throttled", "throttled", "the mail server throttles the account", WAIT),
    AnswerRule(
        r"authenticated but not connected",
        "temporary",
        "Exchange took the login and does not open the mailbox: it is busy, or the account may not read this mailbox",
        "if it lasts: check in Exchange that IMAP is on for the mailbox and that IMAP_USER (for an application: its "
        "service principal) may read it",
    ),
    AnswerRule(r"AccessTokenExpired|Session invalidated", "session_ended", "the access token's time is over"),
    AnswerRule(
        r"BasicAuthBlocked|basic auth\w* is (?:disabled|blocked)|LogonDenied-Basic",
        "operator",
        "the mail server takes no passwords any more",
        "set IMAP_AUTH=oauth2; docs/outlook.md says how",
    ),
    AnswerRule(r"Server Unavailable\. ?\d*|Connection (?:is )?closed\. ?\d+", "temporary", "the mail server broke off"),
    # Dovecot
    AnswerRule(
        r"Maximum number of connections|mail_max_userip_connections", "throttled", "too many connections", FEWER
    ),
    AnswerRule(
        r"Plaintext authentication disallowed|cleartext authentication (?:is )?disallowed",
        "operator",
        "the mail server takes passwords over TLS only",
        USE_TLS,
    ),
    AnswerRule(r"Disconnected for inactivity|auto-?logout|idle for too long", "session_ended", "the session was idle"),
    # Cyrus and Courier
    AnswerRule(r"can'?t connect to saslauthd|generic failure", "temporary", "the mail server cannot check the login"),
    AnswerRule(r"no mechanism available", "operator", "the mail server has no such way to log in", ASK_ADMINISTRATOR),
    AnswerRule(r"maximum (?:connection|number of).{0,20}(?:limit|reached)", "throttled", "too many connections", FEWER),
    # Netease (163.com, 126.com, yeah.net)
    AnswerRule(
        r"Unsafe Login|login is not safe",
        "operator",
        "the mail server wants to know the program (IMAP ID), and what we tell does not suffice",
        "allow third-party clients in the account's settings (POP3/SMTP/IMAP), with an authorization code as password",
    ),
    AnswerRule(
        r"ERR\.LOGIN\.(?:REQCODE|DOMAINCLOSED)",
        "operator",
        "the mail server wants an authorization code, not the password",
        MAKE_ONE_FOR_APPS,
    ),
    AnswerRule(r"ERR\.LOGIN\.", "credentials", "the mail server refuses the login", CHECK_BOTH),
    # QQ and Exmail
    AnswerRule(
        r"Account is abnormal, service is not open",
        "credentials",
        "the mail server refuses the login, for one of several reasons",
        "switch IMAP on in the mail settings and use an authorization code as IMAP_PASSWORD",
    ),
    # Yandex
    AnswerRule(
        r"invalid credentials or IMAP is disabled",
        "credentials",
        "the mail server refuses the login, or IMAP is switched off",
        "switch IMAP on in the mail settings, and set an app password as IMAP_PASSWORD",
    ),
    AnswerRule(r"does not have access rights to this service", "operator", "IMAP is switched off", SWITCH_ON),
    # mail.ru
    AnswerRule(
        r"parol prilozheniya|Ap+lication password is REQUIRED",
        "operator",
        "the mail server takes no ordinary password here",
        MAKE_ONE_FOR_APPS,
    ),
    # Zoho
    AnswerRule(r"yet to enable IMAP", "operator", "IMAP is switched off for this account", SWITCH_ON),
    # Yahoo and AOL
    AnswerRule(r"Rate limit hit", "throttled", "the mail server limits the account's commands", WAIT),
    # Proton Mail Bridge
    AnswerRule(r"too many login attempts", "throttled", "too many logins", WAIT),
    AnswerRule(
        r"no such user",
        "credentials",
        "the mail server does not know the user",
        "take user name and password from the provider's settings for mail clients; Proton's bridge has its own",
    ),
    # Outlook.com
    AnswerRule(
        r"WEBALERT|web ?browser|web login required|verify your (?:identity|account)|CAPTCHA",
        "browser",
        "the mail server wants the owner to sign in with a browser first",
        SIGN_IN,
    ),
)

RESPONSE_CODES = {
    "OVERQUOTA": AnswerRule("", "locked_out", "the account is over its limits", WAIT_A_DAY),
    "UNAVAILABLE": AnswerRule("", "temporary", "a part of the mail server is down", WAIT),
    "SERVERBUG": AnswerRule("", "temporary", "the mail server has an error of its own", ASK_ADMINISTRATOR),
    "CORRUPTION": AnswerRule("", "temporary", "the mailbox is damaged on the mail server", ASK_ADMINISTRATOR),
    "EXPUNGEISSUED": AnswerRule("", "temporary", "messages were expunged meanwhile"),
    "INUSE": AnswerRule("", "throttled", "something else uses the mailbox", WAIT),
    "LIMIT": AnswerRule("", "throttled", "the mail server limits the account", FEWER),
    "AUTHENTICATIONFAILED": AnswerRule("", "credentials", "the mail server refuses the login", CHECK_BOTH),
    "AUTHORIZATIONFAILED": AnswerRule(
        "", "operator", "the login is right, but not for this user", "check IMAP_USER, and who may read the mailbox"
    ),
    "EXPIRED": AnswerRule(
        "", "operator", "the password or the consent has expired", "renew it, then set IMAP_PASSWORD or consent again"
    ),
    "PRIVACYREQUIRED": AnswerRule("", "operator", "the mail server wants an encrypted connection", USE_TLS),
    "CONTACTADMIN": AnswerRule("", "operator", "the mail server wants its administrator asked", ASK_ADMINISTRATOR),
    "NOPERM": AnswerRule("", "operator", "the account may not do that", ASK_ADMINISTRATOR),
    "WEBALERT": AnswerRule("", "browser", "the mail server wants the owner to sign in with a browser first", SIGN_IN),
    "NONEXISTENT": AnswerRule("", "gone", "the mailbox is gone"),
    "TRYCREATE": AnswerRule("", "gone", "the mailbox is gone"),
    "REFERRAL": AnswerRule(
        "", "operator", "the account is on another mail server", "set IMAP_HOST to the server that it names (RFC 2221)"
    ),
    "CANNOT": AnswerRule("", "operator", "the mail server will never do that", ASK_ADMINISTRATOR),
    "CLIENTBUG": AnswerRule("", "bug", "the mail server does not accept the command"),
}

PHRASES = (
    AnswerRule(r"session (?:has )?(?:expired|timed out)", "session_ended", "the IMAP session expired"),
    AnswerRule(
        r"temporar\w+ (?:been )?(?:locked|blocked|suspended|disabled|banned)|too many (?:failed|invalid|unsuccessful)",
        "throttled",
        "the account is locked for some time",
        "check IMAP_PASSWORD meanwhile: wrong passwords lock accounts",
    ),
    AnswerRule(  # to ask again would lock the account, even where they are kind enough to say "please try again"
        r"\A(?!.*(?:later|temporar|too many|busy|server error)).*\b(?:invalid|incorrect|wrong|bad) "
        r"(?:user ?names?|user|login|e-?mail|password|credentials)\b",
        "credentials",
        "the mail server refuses the login",
        CHECK_BOTH,
    ),
    AnswerRule(
        r"\bIP\b.{0,40}(?:block|bann|denied|reject)|(?:black|block|deny)-?list|blocked by|intrusion",
        "throttled",
        "the mail server shuts this machine out",
        "ask whoever runs the mail server; it passes by itself where wrong passwords were the cause",
    ),
    AnswerRule(
        r"too many|throttl|rate.?limit|slow down|too fast|too frequent|frequency limit|connections? limit"
        r"|limit (?:is |was |has been )?(?:reached|exceeded)|exceed\w* .{0,30}(?:limit|number|rate|quota)"
        r"|(?:concurrent|simultaneous|maximum|max\.?) (?:number of )?(?:connections|sessions|logins)"
        r"|(?:session|daily|hourly|bandwidth) (?:limit|quota)|(?:command|request) quota"
        r"|zu viele|zu h\w+ufig|trop de|trop souvent|demasiad|tropp[eio] |muitas|muitos|слишком (?:много|част)"
        r"|za dużo|zbyt wiele|过于频繁|過於頻繁|频率|次数过多|多すぎ|너무 많",
        "throttled",
        "the mail server limits the account",
        FEWER,
    ),
    AnswerRule(
        r"(?:app|application)[ -](?:specific )?passwor[dt]|two-factor|2FA\b|second factor|2-step"
        r"|authori[sz](?:ation|ed) code|授[权權][码碼]",
        "operator",
        "the mail server takes no ordinary password here",
        MAKE_ONE_FOR_APPS,
    ),
    AnswerRule(r"suspicious|unusual|hacked|terms of", "browser", "the provider wants the owner to sign in", SIGN_IN),
    AnswerRule(
        r"over ?quota|quota .{0,20}exceeded|(?:mailbox|disk) (?:is )?full|postfach .{0,20}voll",
        "temporary",
        "the mailbox is full",
        "free some space in the mailbox, or ask the provider for more",
    ),
    AnswerRule(
        r"try (?:it )?(?:again|later)|again later|retry later|temporar|unavailable|not available|out of service"
        r"|internal (?:\w+ )?(?:error|failure)|server error|server is busy|system (?:error|is busy)|overload"
        r"|maintenance|back-?end|timed? ?out|shutting down|(?:can ?not|can'?t|unable to|failed to) connect"
        r"|connection (?:refused|failed|reset|lost)|lost connection|mailbox (?:is )?(?:locked|in use|being|already)"
        r"|\bbusy\b|\b(?:is|are) down\b|not responding|unreachable|(?:re|re-)?starting(?: up)?\b|initiali[sz]ing"
        r"|not ready|(?:can ?not|can'?t|could ?n[o']t|could not|unable to|failed to) "
        r"(?:connect|contact|open|read|access|reach|get|lock|look ?up)"
        r"|database|\bLDAP\b|\bI/?O error|out of memory|insufficient (?:resources|memory|space)|proxy|network|no route"
        r"|deadlock|is locked|unexpected error|error (?:has )?occurred|fatal error|migrat|please wait"
        # in other languages
        r"|später|momentan|vorübergehend|derzeit|wartung|überlast|plus tard|temporairement|indisponible|surcharg"
        r"|m[aá]s tarde|no disponible|più tardi|non disponibile|mais tarde|indispon[ií]vel|later opnieuw|tijdelijk"
        r"|senare|tillfällig|później|chwilowo|niedostępn|daha sonra|временно|поз(?:же|днее)|недоступ|перегруж"
        r"|稍[后後]|繁忙|维护|維護|混み合|しばらく|メンテナンス|一時的|잠시 후|점검",
        "temporary",
        "the mail server has a trouble that may pass",
        WAIT,
    ),
    AnswerRule(
        r"IMAP\d?\b.{0,30}(?:disabled|deactivated|not (?:enabled|allowed|permitted|activated)|switched off|off\b)"
        r"|(?:enable|activate) (?:the )?IMAP|(?:disabled|not enabled) .{0,20}IMAP"
        r"|IMAP.{0,30}(?:deaktiviert|nicht (?:aktiviert|freigeschaltet|erlaubt)|access denied|n'est pas activ|désactivé"
        r"|(?:desactivad|deshabilitad|disattivat|не включ|не разреш|未开启|未開啟|無効))"
        r"|protocol (?:is )?(?:not allowed|disabled)",
        "operator",
        "IMAP is switched off for this account",
        SWITCH_ON,
    ),
    AnswerRule(
        r"account .{0,20}(?:blocked|locked|suspended|disabled|deactivated|closed|terminated|inactive|banned)"
        r"|user .{0,20}(?:blocked|locked|suspended|disabled|deactivated)",
        "operator",
        "the provider has closed or locked the account",
        SIGN_IN,
    ),
    AnswerRule(
        r"password .{0,20}expired|expired password|must change .{0,10}password",
        "operator",
        "the password has expired",
        "set a new one at the provider, and as IMAP_PASSWORD",
    ),
    AnswerRule(
        r"(?:requires?|must use|needs?|only (?:over|via|with)) .{0,20}(?:TLS|SSL|encryption|secure)|STARTTLS",
        "operator",
        "the mail server wants an encrypted connection",
        USE_TLS,
    ),
    AnswerRule(
        r"paid|premium|upgrade|subscription",
        "operator",
        "the provider offers IMAP in another plan only",
        "ask the provider",
    ),
    AnswerRule(
        r"contact .{0,30}(?:admin|support|provider|help)",
        "operator",
        "the mail server wants its provider asked",
        ASK_ADMINISTRATOR,
    ),
    AnswerRule(
        r"unsupported (?:authentication )?mechanism|mechanism (?:is )?not supported",
        "operator",
        "the mail server has no such way to log in",
        "set IMAP_AUTH to what the server offers: oauth2 or password",
    ),
    AnswerRule(
        r"unknown (?:mailbox|folder)|(?:mailbox|folder) .{0,40}(?:does not|doesn'?t) exist|no such (?:mailbox|folder)"
        r"|(?:mailbox|folder) .{0,20}not found",
        "gone",
        "the mailbox is gone",
    ),
    AnswerRule(
        r"invalid (?:credentials|login|user|password)|(?:bad|wrong|incorrect) (?:user|login|password|credentials)"
        r"|password .{0,20}(?:incorrect|wrong|invalid)|authenticat\w+ fail|login (?:failed|incorrect|denied|error)",
        "credentials",
        "the mail server refuses the login",
        CHECK_BOTH,
    ),
)

_CODE = re.compile(r"\[([A-Z][A-Z0-9-]*)(?: [^\]]*)?\]", re.IGNORECASE)
_PAUSE = re.compile(
    r"(?:back-?off|retry|again|wait|later)\D{0,40}?(\d{1,9}(?:\.\d{1,6})?)\s*"
    r"(ms|milli\w*|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)\b",
    re.IGNORECASE,
)
_UNITS = {"ms": 0.001, "mi": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_PAUSE_SECONDS = 24 * 3600.0


def judge(text: str) -> AnswerRule | None:
    """Return the first row that knows the text of an answer, or None; of a long one its beginning counts."""
    text = text[:READ_LENGTH]
    codes = [RESPONSE_CODES.get(code.upper()) for code in _CODE.findall(text)]
    by_code = next((rule for rule in codes if rule), None)
    return _first(PROVIDER_TEXTS, text) or by_code or _first(PHRASES, text)


def asked_pause(text: str) -> float | None:
    """Return the seconds for which an answer asks us to stay away, at most a day; None when it names no time."""
    found = _PAUSE.search(text[:READ_LENGTH])
    if not found:
        return None
    unit = found[2].lower()
    factor = _UNITS["ms" if unit.startswith(("ms", "mil")) else unit[0]]
    return min(LONGEST_PAUSE_SECONDS, float(found[1]) * factor)


def _first(rules: tuple[AnswerRule, ...], text: str) -> AnswerRule | None:
    bare = _CODE.sub("", text).strip()
    return next((rule for rule in rules if _compiled(rule.pattern).search(bare or text)), None)


@cache  # at the first answer that is judged: the whole table costs every start of a process what most never need
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)
