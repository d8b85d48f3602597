"""A short form of an identity means that message and no other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from email_ingestion.identity import MIN_PART, matches_identity, shortest_parts
from email_ingestion.records import email_id

values = st.text("01", min_size=1, max_size=12)
identities = st.builds(lambda account, value: f"{account}:gm:{value}", st.sampled_from(["a", "b", "010101"]), values)


@given(st.lists(identities, unique=True))
def test_a_short_form_means_its_message_only(ids: list[str]) -> None:
    for whole, part in shortest_parts(ids, ids).items():
        assert part == whole or [each for each in ids if matches_identity(part, each)] == [whole]
        assert part == whole or len(part) >= MIN_PART


@given(st.lists(identities, unique=True))
def test_a_short_form_is_as_short_as_can_be(ids: list[str]) -> None:
    for whole, part in shortest_parts(ids, ids).items():
        if part != whole and len(part) > MIN_PART:
            assert len([each for each in ids if matches_identity(part[:-1], each)]) > 1


def test_a_beginning_is_of_the_whole_of_its_end_or_of_its_number():
    whole = email_id("work", 1786881717043200001, "")
    parts = {"work:gm:17868", "gm:17868", "17868", whole}
    assert {part for part in parts if matches_identity(part, whole)} == parts
    assert not any(matches_identity(part, whole) for part in ("work", "gm", "ork:gm:17868", "7868", "m:17868", ":17"))
