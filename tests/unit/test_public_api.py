"""The public API is what the page about it says, typed, and costs nothing before it is used."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import email_ingestion

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_the_page_names_what_the_package_exports() -> None:
    cells = re.findall(r"^\| (.+?) \|", PAGE.read_text(), re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    assert named == {*email_ingestion.__all__} - {"__version__"}


@pytest.mark.parametrize("name", email_ingestion.__all__)
def test_each_public_name_is_there_and_has_a_docstring(name: str) -> None:
    found = getattr(email_ingestion, name)
    assert isinstance(found, str) or found.__doc__


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Ledger'"):
        email_ingestion.Ledger  # noqa: B018 - the access is what is tried


def test_type_checkers_find_the_annotations() -> None:
    assert files("email_ingestion").joinpath("py.typed").is_file()


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = {*sys.modules}; import email_ingestion; print(*sorted({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"email_ingestion", "__future__"}
