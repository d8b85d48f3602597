"""HTML as mail programs write it gives the words that a reader sees, apart from each other and in lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from email_ingestion.parsing.html_text import to_text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<html><body><p>mail</p></body></html>\r\n<p>footer</p>", "mail\n\nfooter"),
        ("<html><body>one</body></html><html><body>two</body></html>", "one\ntwo"),
        ("<html><head><title>x</title></head><body>one</body></html>plain footer", "one\nplain footer"),
        ("a<hr>b<center>c</center>d<section>e</section>f", "a\nb\nc\nd\ne\nf"),
        ("<dl><dt>a<dd>b<dt>c<dd>d</dl>e", "a\nb\nc\nd\ne"),
        ("<form><fieldset><legend>a</legend>b</fieldset><button>c</button></form>d", "a\nb\nc\nd"),
        ("<select><option>a<option>b</select>c", "a\nb\nc"),
        ("<table><tr><td>a<td>b<tr><td>c</table>d", "a b\nc\nd"),
        ("<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>b</td></tr></tbody></table>", "a\nb"),
        ("a<br>b<br/><br>c", "a\nb\n\nc"),
        ("<p>a<p>b</p>c", "a\n\nb\n\nc"),
        ("<ul><li>a<li>b<ul><li>c</ul></ul>d", "  * a\n  * b\n    * c\nd"),
        ("<ol start=3><li>a<li value=7>b<li>c</ol>", "  3. a\n  7. b\n  8. c"),
        ("<pre>\n  a\n    b</pre>c", "  a\n    b\n\nc"),
        ("<b>a</b><i>b</i> <u>c</u>\n d", "ab c d"),
        ("a &lt;b&gt; &amp;amp; &euro; &#x41;&nbsp;x", "a <b> &amp; € A\xa0x"),
        ("a<!-- x --><!--> b --> c<![if !mso]>d<![endif]><?xml x?>", "a b --> cd"),
        ("<style>a{}</style><script>b()</script><title>c</title>d<template>e</template>", "d"),
        ("<style>a { no end", "a { no end"),
        ('<p style="color:red; DISPLAY : none">a<p>b', "b"),
        ("<div style='display:none'><div>a</div>b</div>c", "c"),
        ('<table><tr style="display:none"><td>a<tr><td>b</table>', "b"),
        ('<span style="display:none">a</span>b', "b"),
        ('<a title="1 > 0">a</a>', "a"),
        ('<a href="x>a</a> b', "a b"),
        ("<a title=it's>a</a>b", "ab"),
        ("a <3 b < c", "a <3 b < c"),
        ("a<", "a<"),
        ("<div>" * 5_000 + "deep", "deep"),
        ("<blockquote>" * 300 + "deep" + "</blockquote>" * 300 + "end", "deep\n\nend"),
        ("</p>a</div>b</br>c", "a\nb\nc"),
        ("<o:p>a</o:p><v:shape>b</v:shape>", "ab"),
        ("<q>a</q>", '"a"'),
        ("<p " + "a=1 " * 200_000 + ">x", "x"),
    ],
)
def test_html_gives_the_words_that_a_reader_sees(html: str, text: str) -> None:
    assert to_text(html) == text


PIECES = st.sampled_from(
    [
        *("<p>", "</p>", "<div", ">", "<", "</", "<!--", "-->", '"', "'", "=", "style=", "display:none", "<style>"),
        *("</style>", "<table>", "<td>", "<tr>", "</table>", "<li>", "<ol>", "<ul>", "<pre>", "\n", " ", "a", "&amp;"),
        *("&#0;", "&#xd800;", "<b>", "</b>", "<br>", "<script>", "\0", "<!", "<?", "<textarea>"),
    ]
)


@given(st.lists(PIECES, max_size=60).map("".join))
def test_any_html_gives_text(html: str) -> None:
    assert len(to_text(html)) <= 12 * len(html)


@given(st.lists(st.sampled_from(["<p>", "</div>", "<b>", "<table>", "<td>", "<br>", "</b>", "<li>", " "]), max_size=40))
def test_no_word_between_tags_is_lost(tags: list[str]) -> None:
    words = [f"w{number}" for number in range(len(tags))]
    html = "".join(tag + word for tag, word in zip(tags, words, strict=True))
    assert "".join(to_text(html).replace("*", "").split()) == "".join(words)
