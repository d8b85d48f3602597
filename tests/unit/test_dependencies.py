"""What is installed is reviewed, and the bill of materials says what the lock says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

from scripts import sbom

PERMISSIVE = frozenset(["MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "ISC", "PSF-2.0"])
REPLACEABLE = {
    "psycopg": "LGPL-3.0-only",
    "psycopg-binary": "LGPL-3.0-only",
    "certifi": "MPL-2.0",
    "pathspec": "MPL-2.0",
}
EXTRAS = ("postgres", "s3", "sandbox", "alerts", "build")


def test_the_review_is_of_the_packages_in_the_locks() -> None:
    installed = {package["name"] for lock in sbom.LOCKS for package in sbom.locked(lock)}
    assert set(sbom.reviewed()) == installed


def test_every_package_that_we_ask_for_is_in_the_review() -> None:
    project = tomllib.loads((sbom.ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [each for extra in EXTRAS for each in project["optional-dependencies"][extra]]
    names = {re.split(r"[\[<>=; ]", each)[0] for each in asked}
    assert names <= set(sbom.reviewed())
    # What we ask for ourselves has a reason of its own, and not that of another package.
    assert not [name for name in names if sbom.reviewed()[name][1].startswith("of ")]


def test_every_licence_is_permissive_but_those_that_are_named_and_is_what_the_package_says() -> None:
    reviewed = {name: licence for name, (licence, _, _) in sbom.reviewed().items()}
    others = {name: each for name, each in reviewed.items() if set(re.split(" OR | AND ", each)) - PERMISSIVE}
    assert others == REPLACEABLE
    said = {each.metadata["Name"].lower().replace("_", "-"): each.metadata for each in distributions()}
    expressions = {name: facts.get("License-Expression") for name, facts in said.items() if name in reviewed}
    assert sum(map(bool, expressions.values())) > 20
    assert {name: each for name, each in expressions.items() if each and each != reviewed[name]} == {}


def test_an_audit_that_could_look_nothing_up_is_no_clean_one() -> None:
    (command,) = re.findall(r"^audit:\n\t(pip-audit .*)$", (sbom.ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "--strict" in command
    assert all(f"-r {lock.relative_to(sbom.ROOT)}" in command for lock in sbom.LOCKS)


@pytest.mark.parametrize("found", [0, 1], ids=["nothing known", "something known"])
def test_the_audit_asks_about_every_lock_and_fails_where_something_is_known(tmp_path: Path, found: int) -> None:
    """A program stands for pip-audit: it says what it was asked, and answers as the service would."""
    asked = tmp_path / "asked"
    (tmp_path / "pip-audit").write_text(f'#!/bin/sh\necho "$@" > {asked}\nexit {found}\n')
    (tmp_path / "pip-audit").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "audit"], cwd=sbom.ROOT, env={**os.environ, "PATH": path}, capture_output=True, check=False
    )
    assert (done.returncode == 0) == (found == 0), done.stderr.decode()
    words = asked.read_text().split()
    assert [Path(words[at + 1]) for at, word in enumerate(words) if word == "-r"] == [
        lock.relative_to(sbom.ROOT) for lock in sbom.LOCKS
    ]


@pytest.mark.parametrize("lock", sbom.LOCKS, ids=["start.sh", "image"])
def test_every_locked_file_has_a_hash_and_no_address(lock: Path) -> None:
    packages = list(sbom.locked(lock))
    assert len(packages) > 40
    assert not [package["name"] for package in packages if not package["hashes"]]
    assert "://" not in lock.read_text()
    pins = [line for line in lock.read_text().splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert len(pins) == len(packages)


def test_the_bill_of_materials_is_that_of_the_lock_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        sbom.main([str(tmp_path / name)])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    bill = json.loads((tmp_path / "a.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bill["serialNumber"])
    assert {(each["name"], each["version"]) for each in bill["components"]} == {
        (package["name"], package["version"]) for package in sbom.locked(sbom.LOCKS[1])
    }
    for each in bill["components"]:
        assert each["purl"] == each["bom-ref"] == f"pkg:pypi/{each['name']}@{each['version']}"
        assert each["licenses"][0]["expression"]
        assert each["externalReferences"]
