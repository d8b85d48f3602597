from __future__ import annotations

import pytest

from email_ingestion.stream.keys import Keys, entry_order, entry_time, parse_entry_id, partition_keys, partition_of


def test_an_entry_id_names_its_partition_unless_that_is_the_first():
    assert Keys().format_entry_id("1-0") == "1-0"
    assert Keys("email_ingestion:2", 2).format_entry_id("1-0") == "2:1-0"
    assert [parse_entry_id(formatted_id) for formatted_id in ("1-0", "2:1-0")] == [(0, "1-0"), (2, "1-0")]


def test_entries_are_ordered_by_their_time_whatever_their_partition():
    assert sorted(["2:20-0", "10-1", "1:10-0", "9-5"], key=entry_order) == ["9-5", "1:10-0", "10-1", "2:20-0"]


@pytest.mark.parametrize("entry_id", ["1767225600500-3", "4:1767225600500-3", b"1767225600500-3"])
def test_an_entry_id_tells_when_it_was_added(entry_id: str | bytes):
    assert entry_time(entry_id) == 1767225600.5


def test_all_keys_of_a_partition_have_one_hash_tag():
    keys = Keys()
    named = [keys.stream, keys.dlq, keys.priority, keys.volume, keys.lease("a"), keys.cursor("a", "INBOX")]
    assert all(key.startswith("{email_ingestion}:") for key in named)


def test_partitions_have_tags_of_their_own_and_an_account_stays_in_its_partition():
    assert len({keys.tag for keys in partition_keys(8)}) == 8
    assert partition_keys(8)[0] == Keys()
    assert partition_of("default", 1) == 0
    assert partition_of("default", 8) == partition_of("default", 8) < 8
