"""Modified UTF-7, the spelling of mailbox names and labels on the IMAP wire (RFC 3501 section 5.1.3)."""

from __future__ import annotations

import base64
import binascii


def encode(name: str) -> bytes:
    """Return `name` as the wire spells it: printable ASCII, everything else in `&…-` runs."""
    out = bytearray()
    run = ""
    for char in name:
        if " " <= char <= "~":
            out += _shifted(run)
            run = ""
            out += b"&-" if char == "&" else char.encode("ascii")
        else:
            run += char
    return bytes(out + _shifted(run))


def decode(wire: bytes) -> str:
    """Return the name behind `wire`; raise ValueError when it is not modified UTF-7."""
    out = ""
    rest = wire
    while rest:
        plain, ampersand, rest = rest.partition(b"&")
        out += plain.decode("ascii")
        if ampersand:
            run, dash, rest = rest.partition(b"-")
            if not dash:
                message = "a shifted run is not closed"
                raise ValueError(message)
            out += _unshifted(run)
    return out


def _shifted(run: str) -> bytes:
    if not run:
        return b""
    encoded = base64.b64encode(run.encode("utf-16-be")).rstrip(b"=")
    return b"&" + encoded.replace(b"/", b",") + b"-"


def _unshifted(run: bytes) -> str:
    if not run:
        return "&"
    padded = run.replace(b",", b"/") + b"=" * (-len(run) % 4)
    try:
        return base64.b64decode(padded, validate=True).decode("utf-16-be")
    except binascii.Error as error:
        raise ValueError(str(error)) from error
