"""Find the Python codec for a charset label: the WHATWG list of labels, and what mail programs write beside it."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache
from typing import Final

# As in the WHATWG encoding standard, a label stands for the superset that its users really send.
_CODECS: Final = {
    "ascii": "default us-ascii x-ascii 646 ascii7 7bit ansi_x3.4-1968",
    "utf_8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 utf8mb4 x-unicode20utf8 cp65001 unicode",
    "cp866": "866 cp866 csibm866 ibm866 dos-866 cp-866 x-cp866",
    "iso8859_2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859_3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso8859_4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso8859_5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
    "iso8859_6": (
        "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e iso-8859-6-i "
        "iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987"
    ),
    "iso8859_7": (
        "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 "
        "iso_8859-7:1987 sun_eu_greek"
    ),
    "iso8859_8": (
        "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 iso_8859-8 "
        "iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical"
    ),
    "iso8859_10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859_13": "iso-8859-13 iso8859-13 iso885913 latin7",
    "iso8859_14": "iso-8859-14 iso8859-14 iso885914 latin8",
    "iso8859_15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9 latin9 latin-9",
    "iso8859_16": "iso-8859-16 iso8859-16 latin10",
    "koi8_r": "cskoi8r koi koi8 koi8-r koi8_r koi-8 koi8r",
    "koi8_u": "koi8-ru koi8-u koi8u",
    "mac_roman": "csmacintosh mac macintosh x-mac-roman macroman",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874 tis620 cp874",
    "cp1250": "cp1250 windows-1250 x-cp1250 win-1250 win1250",
    "cp1251": "cp1251 windows-1251 x-cp1251 win-1251 win1251 cp-1251 windows1251 windows-cp1251",
    "cp1252": (
        "ansi_x3.4-1986 cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 "
        "iso_8859-1:1987 l1 latin1 latin-1 windows-1252 x-cp1252 win-1252 win1252 ansi iso-latin-1 x-ansi "
        "iso8859_1 iso-8859-1-windows-3.1-latin-1"
    ),
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": (
        "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 "
        "windows-1254 x-cp1254"
    ),
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian maccyrillic",
    "mac_latin2": "x-mac-ce x-mac-centraleurroman",
    "mac_greek": "x-mac-greek",
    "mac_turkish": "x-mac-turkish",
    "gb18030": (
        "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030 cn-gb euc-cn "
        "x-euc-cn gb2312-80 cp936 ms936 windows-936 x-x-gbk gb-18030 eucgb2312_cn"
    ),
    "cp950": "big5 big-5 cn-big5 csbig5 x-x-big5 x-big5 cp950 windows-950 big5-eten",
    "big5hkscs": "big5-hkscs big5hkscs",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp eucjp ujis x-euc x-eucjp",
    "iso2022_jp_2": (
        "csiso2022jp iso-2022-jp iso-2022-jp-1 iso-2022-jp-2 iso-2022-jp-3 iso-2022-jp-ms cp50220 cp50221 cp50222 "
        "windows-50221 x-windows-iso2022jp iso2022jp jis csiso2022jp2 iso-2022-jp-2004 iso-2022-jp-ext junet"
    ),
    "cp932": (
        "csshiftjis cswindows31j "
        "ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis cp932 windows-932 shiftjis x-ms-cp932 "
        "shift_jis-2004 x-shift-jis"
    ),
    "cp949": (
        "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949 "
        "ms949 x-windows-949 ks_c_5601 ks-c-5601-1987 uhc x-euc-kr euckr"
    ),
    "johab": "johab ms1361 x-johab",
    "iso2022_kr": "iso-2022-kr csiso2022kr",
    "hz": "hz-gb-2312 hz hzgb",
    "utf_16": "utf-16 utf16 csunicode iso-10646-ucs-2 ucs-2 unicodefeff",
    "utf_16_be": "unicodefffe utf-16be utf16be",
    "utf_16_le": "utf-16le utf16le",
    "utf_7": "unicode-1-1-utf-7 utf-7 utf7 csunicode11utf7 x-unicode-2-0-utf-7 unicode-2-0-utf-7",
    "cp437": "ibm437 cp437 437",
    "cp850": "cp-850 ibm850 cp850 850",
    "cp852": "ibm852 cp852 852",
    "cp862": "ibm862 cp862 dos-862",
    "latin-1": "ansi_x3.110-1983",
}
_BY_LABEL: Final = {label: codec for codec, labels in _CODECS.items() for label in labels.split()}
_NORMAL: Final = {
    "utf_8": "utf-8",
    "utf_16": "utf-16",
    "utf_16_le": "utf-16-le",
    "utf_16_be": "utf-16-be",
    "latin-1": "iso8859-1",
    "utf_7": "utf-7",
}
# Codecs of Python that read text but are no charset of mail; punycode is quadratic, too.
_NOT_CHARSETS: Final = frozenset(
    {"idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}
)
_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9._:+-]{0,39}")


@lru_cache(maxsize=512)
def find_codec(label: str) -> str | None:
    """Return the Python codec for a charset label; None when Python has none or it is not a charset."""
    name = label.rpartition("=")[2].partition("(")[0].strip(" \t'\"<>;,()").lower()
    if codec := _BY_LABEL.get(name) or _BY_LABEL.get(name.replace("_", "-")):
        return _NORMAL.get(codec, codec)
    if not _LABEL.fullmatch(name):
        return None
    try:
        codec = codecs.lookup(name).name
        b"\0\0\0\0".decode(codec, "replace")  # refuses what is no text encoding, such as zlib; not so for b""
    except (LookupError, ValueError, ImportError):
        return None
    codec = _BY_LABEL.get(codec, codec)
    return None if codec.replace("_", "-") in _NOT_CHARSETS else codec
