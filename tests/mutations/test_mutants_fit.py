"""Every mutant still fits the product, so that the long run tries what it says it tries."""

from __future__ import annotations

import pytest

from tests.mutations.mutants import MUTANTS, Mutant
from tests.servers.processes import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_fits_and_its_tests_are_there(mutant: Mutant):
    for edit in mutant.edits:
        assert (ROOT / edit.file).read_text().count(edit.old) == 1, edit
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert not name or f"def {name.partition('[')[0]}(" in (ROOT / path).read_text()
        assert (ROOT / path).is_file()
