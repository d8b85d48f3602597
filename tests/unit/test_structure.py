"""The code keeps to the rules of docs/decisions/0014: the field's own words, and a file for a subject."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from scripts import structure

ROOT = Path(__file__).resolve().parents[2]
# Small files with one importer that stand alone all the same, with the reason.
SMALL_ALONE = {
    "email_ingestion/producer/canary.py": "its importer builds objects and does no work",
}


@pytest.fixture(scope="module")
def modules():
    return structure.modules(ROOT / "src")


def test_no_retired_word_is_an_identifier(modules):
    assert structure.retired(modules) == []


def test_no_module_imports_itself_through_others(modules):
    assert structure.circles(modules) == []


def test_no_class_name_is_defined_twice(modules):
    assert structure.repeated_classes(modules) == {}


def test_a_small_file_with_one_importer_is_part_of_that_importer(modules):
    assert set(structure.small_modules(modules)) <= set(SMALL_ALONE)


def test_every_exception_still_is_one(modules):
    assert set(SMALL_ALONE) <= set(structure.small_modules(modules))


def test_no_two_files_of_the_product_have_the_same_name(modules):
    """A command's file has its noun, whatever the rooms call theirs."""
    places = defaultdict(list)
    for path in modules:
        if path.parts[0] == "email_ingestion" and path.parts[1] != "cli" and path.stem not in {"__init__", "__main__"}:
            places[path.stem].append(path.as_posix())
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_every_term_of_the_glossary_has_one_sentence_of_its_own():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    terms = [term for term, _ in rows if term not in {"Term", "---"}]
    assert len(terms) == len(set(terms)) > 40
    assert terms == sorted(terms, key=str.lower)
    retired = {word.lower() for word in structure.RETIRED_WORDS}
    assert not retired & {term.lower() for term in terms}


def test_every_file_that_the_architecture_names_exists():
    named = set(
        re.findall(r"`([a-z_0-9]+(?:/[a-z_0-9]+)*\.(?:py|lua))`", (ROOT / "docs" / "architecture.md").read_text())
    )
    assert len(named) > 30
    assert {name for name in named if not (ROOT / "src" / "email_ingestion" / name).exists()} == set()


def test_the_architecture_tells_of_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {
        path.stem for path in (ROOT / "src" / "email_ingestion").iterdir() if path.suffix == ".py" or path.is_dir()
    }
    assert {room for room in rooms if not room.startswith("_") and f"`{room}" not in page} == set()


def test_the_decisions_are_numbered_without_gaps():
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for path in (ROOT / "docs" / "decisions").glob("*.md"):
        assert path.read_text().startswith(f"# {int(path.name[:4])}. ")
