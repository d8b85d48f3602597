"""What a checkout says to type, and the same in an installed package, which has no scripts."""

from __future__ import annotations

import re

import pytest

from email_ingestion.cli.main import COMMANDS
from email_ingestion.shipped_files import SCRIPTS, as_typed_here, by_program
from tests.servers.processes import ROOT


def test_each_script_has_a_command_that_does_the_same():
    assert {command.split()[1] for command in SCRIPTS.values() if " " in command} <= set(COMMANDS)
    for script in SCRIPTS:
        file = re.sub(r"^python (-m )?", "", script).replace("src.auth.oauth2_gmail", "src/auth/oauth2_gmail.py")
        assert (ROOT / file).exists() or file.startswith(".venv/")


@pytest.mark.parametrize(
    ("sentence", "by_package"),
    [
        ("run `python producer.py --auth-setup`", "run `email-ingestion producer --auth-setup`"),
        ("`.venv/bin/email-ingestion doctor` checks everything", "`email-ingestion doctor` checks everything"),
        ("worker is dead: ./scripts/start.sh", "worker is dead: email-ingestion start"),
        (
            "python scripts/backup.py --list, scripts/restore.py",
            "email-ingestion backup --list, email-ingestion restore",
        ),
        ("nothing is wrong", "nothing is wrong"),
    ],
)
def test_an_installed_package_says_what_can_be_typed_there(sentence: str, by_package: str):
    assert by_program(sentence) == by_package
    assert as_typed_here(sentence) == sentence  # this is a checkout


def test_no_sentence_names_a_script_that_has_no_such_command():
    named = set()
    for path in (ROOT / "src" / "email_ingestion").rglob("*.py"):
        named |= set(re.findall(r"(?:python )?(?:\./)?scripts/\w+\.(?:sh|py)|python \w+\.py", path.read_text()))
    assert named - set(SCRIPTS) <= {"python healthcheck.py"}
