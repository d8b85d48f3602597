"""Make the HTML of a message harmless, and wrap it into a document that may load and run nothing.

Two fences, each of which holds alone: an allow-list of elements, attributes and URLs (nh3); and a policy of the
document's own, which lets it load nothing and puts it into a sandbox without origin, scripts and forms. The page of the
message shows the document in an iframe. This module does not read mail: it gets texts.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

import nh3

from email_ingestion.records import Attachment

# What a browser's parser needs grows with the square of the nesting: 20,000 elements take 3 s at worst.
MAX_CHARACTERS: Final = 1_000_000
MAX_TAGS: Final = 20_000
MAX_INLINE_BYTES: Final = 10 * 1024**2  # of the pictures that travel inside the document

SANDBOX: Final = "allow-popups allow-popups-to-escape-sandbox"  # for links; neither scripts nor an origin nor forms
RASTER_TYPES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"})

_TAGS: Final = (
    "a abbr acronym address b bdi bdo big blockquote br caption center cite code col colgroup dd del details dfn div dl"
    " dt em figcaption figure font h1 h2 h3 h4 h5 h6 hr i img ins kbd li main mark nav ol p pre q rp rt ruby s samp"
    " section small span strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr"
)
# With what is in them; of every other element that is not allowed the text stays.
_REMOVED_WHOLE: Final = (
    "script style title template noscript noembed noframes iframe object applet svg math select textarea button"
    " audio video canvas xmp plaintext"
)
_ATTRIBUTES: Final = {
    "*": {"align", "bgcolor", "dir", "height", "lang", "style", "title", "valign", "width"},
    "a": {"href"},
    "img": {"src", "alt", "border", "hspace", "vspace"},
    "font": {"color", "face", "size"},
    "table": {"border", "cellpadding", "cellspacing", "summary"},
    "td": {"colspan", "rowspan", "headers", "nowrap", "scope"},
    "th": {"colspan", "rowspan", "headers", "nowrap", "scope"},
    "col": {"span"},
    "colgroup": {"span"},
    "ol": {"start", "type", "reversed"},
    "ul": {"type"},
    "li": {"value", "type"},
    "hr": {"color", "noshade", "size"},
    "del": {"datetime"},
    "ins": {"datetime"},
    "time": {"datetime"},
    "details": {"open"},
}
# None of them takes a URL, moves anything out of its place, or lays it over something else.
_STYLES: Final = (
    "background-color border border-bottom border-bottom-color border-bottom-style border-bottom-width border-collapse"
    " border-color border-left border-left-color border-left-style border-left-width border-radius border-right"
    " border-right-color border-right-style border-right-width border-spacing border-style border-top border-top-color"
    " border-top-style border-top-width border-width box-sizing caption-side color direction display empty-cells"
    " font-family font-size font-style font-variant font-weight height letter-spacing line-height margin margin-bottom"
    " margin-left margin-right margin-top max-height max-width min-height min-width mso-hide overflow-wrap padding"
    " padding-bottom padding-left padding-right padding-top table-layout text-align text-decoration text-indent"
    " text-transform unicode-bidi vertical-align visibility white-space width word-break word-spacing word-wrap"
)
_STYLE_NAMES: Final = frozenset(_STYLES.split())
_LOADS: Final = re.compile(r"url|image|src|expression|(?:attr|var|env)\s*\(|[\\@<{}]", re.IGNORECASE)
_IGNORED: Final = re.compile(r"[\0-\x20\x7f-\xa0\u2028\u2029]+")  # a browser takes some of them out of a URL
_LINK: Final = re.compile(r"(?:https?://|mailto:|tel:)", re.IGNORECASE)
_REMOTE: Final = re.compile(r"https?://", re.IGNORECASE)
_DATA: Final = re.compile(r"data:(image/[a-z]+);base64,[A-Za-z0-9+/]+=*", re.IGNORECASE)
_TAG: Final = re.compile(r"<[A-Za-z]")


@dataclass(slots=True)
class HarmlessHtml:
    """The inside of a document that can neither run nor load anything but what was allowed."""

    html: str = ""
    blocked: int = 0  # remote pictures that are left out
    missing: int = 0  # pictures of the message itself that it does not have, or that are none
    shortened: bool = False  # its end is left out: it is too large


@dataclass(slots=True)
class _Filter:
    """Decides on the attributes of one message."""

    inline: Mapping[str, str]
    remote: bool
    found: HarmlessHtml = field(default_factory=HarmlessHtml)

    def keep(self, element: str, attribute: str, value: str) -> str | None:
        """Return the value that an attribute gets; None removes it."""
        if attribute == "href":
            return value if _LINK.match(_IGNORED.sub("", value)) else None
        if attribute == "src":
            return self._picture(_IGNORED.sub("", value)) if element == "img" else None
        if attribute == "style":
            return "; ".join(_declarations(value)) or None
        return value

    def _picture(self, url: str) -> str | None:
        if url[:4].lower() == "cid:":
            own = self.inline.get(unquote(url[4:]))
            self.found.missing += own is None
            return own
        if picture := _DATA.fullmatch(url):
            return url if picture[1].lower() in RASTER_TYPES else None
        if not _REMOTE.match(url):
            return None
        if self.remote and url[:8].lower() == "https://":
            return url
        self.found.blocked += 1
        return None


def clean(html: str, inline: Mapping[str, str] | None = None, *, remote: bool = False) -> HarmlessHtml:
    """Return what of a message's HTML may be shown.

    `inline` gives the `data:` URL for each Content-ID of its own pictures; `remote` lets pictures load over HTTPS.
    """
    decide = _Filter(inline or {}, remote)
    found = decide.found
    kept = _shorten(html)
    found.shortened = len(kept) < len(html)
    found.html = nh3.clean(
        kept,
        tags=set(_TAGS.split()),
        clean_content_tags=set(_REMOVED_WHOLE.split()),
        attributes=_ATTRIBUTES,
        attribute_filter=decide.keep,
        strip_comments=True,
        link_rel="noopener noreferrer",
        set_tag_attribute_values={"a": {"target": "_blank"}, "img": {"referrerpolicy": "no-referrer"}},
        url_schemes={"http", "https", "mailto", "tel", "cid", "data"},
        url_relative="deny",
        filter_style_properties=set(_STYLE_NAMES),
    )
    return found


def has_remote_pictures(html: str) -> bool:
    """Tell whether it may be worth asking for them; a guess that costs nothing."""
    return re.search(r"<img\b[^>]{0,5000}\bsrc\s*=\s*[\"']?\s*https?:", html, re.IGNORECASE) is not None


def inline_pictures(parts: Iterable[Attachment]) -> dict[str, str]:
    """Return a `data:` URL for each picture of a message that has a Content-ID; only raster pictures are any."""
    found: dict[str, str] = {}
    left = MAX_INLINE_BYTES
    for part in parts:
        kind = picture_type(part.content)
        if part.content_id and kind and part.size <= left:
            left -= part.size
            name = part.content_id.strip().removeprefix("<").removesuffix(">")
            found.setdefault(name, f"data:{kind};base64,{base64.b64encode(part.content).decode()}")
    return found


_BEGINNINGS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)


def picture_type(content: bytes) -> str | None:
    """Return the media type of a raster picture by its first bytes, whatever the message says of it."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for beginning, kind in _BEGINNINGS if content.startswith(beginning)), None)


def content_security_policy(*, remote: bool) -> str:
    """Return the policy of the document of a message."""
    pictures = "data: https:" if remote else "data:"
    return (
        f"default-src 'none'; img-src {pictures}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'self'; sandbox {SANDBOX}"
    )


def response_headers(*, remote: bool) -> dict[str, str]:
    """Return the headers with which the document of a message must be answered."""
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": content_security_policy(remote=remote),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def document(found: HarmlessHtml) -> str:
    """Return the document around harmless HTML. Mail is written for white paper, so it gets that in the dark too."""
    notes = "".join(f"<p class=note>{note}</p>" for note in _notes(found))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Message</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><style>'
        ":root{color-scheme:light}body{margin:12px;background:#fff;color:#111;font:16px/1.5 system-ui,sans-serif;"
        "overflow-wrap:anywhere}img{max-width:100%;height:auto}table{max-width:100%}a{color:#0b57d0}"
        ".note{margin:0 0 12px;padding:6px 10px;background:#f1f3f4;color:#333;font-size:14px}"
        f"</style></head><body>{notes}<main>{found.html}</main></body></html>"
    )


def _declarations(style: str) -> Iterable[str]:
    for declaration in style.split(";"):
        name, _, value = declaration.partition(":")
        if name.strip().lower() in _STYLE_NAMES and not _LOADS.search(value):
            yield f"{name.strip().lower()}: {value.strip()}"


def _notes(found: HarmlessHtml) -> Iterable[str]:
    if found.blocked:
        yield f"{_count(found.blocked)} of other servers not loaded."
    if found.missing:
        yield f"{_count(found.missing)} that the message names and does not have."
    if found.shortened:
        yield "The message is too large to be shown whole; its source has all of it."


def _count(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures:,} pictures"


def _shorten(html: str) -> str:
    kept = html[:MAX_CHARACTERS]
    for number, tag in enumerate(_TAG.finditer(kept)):
        if number == MAX_TAGS:
            return kept[: tag.start()]
    return kept
