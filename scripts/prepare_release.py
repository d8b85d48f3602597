"""Turn what has been done since the last release into the next version: `python scripts/prepare_release.py VERSION`.

`## [Unreleased]` of CHANGELOG.md becomes the section of the version, with the date of the day (SOURCE_DATE_EPOCH, where
it is set) and an empty one above it. The version is set where it stands, in src/email_ingestion/__init__.py, and where
a copy must stand: the label of the image, and the schema that the version makes, in the code and in docs/install.md.
What docs/upgrading.md says of it is a person's to write, and asked for. Nothing is committed; either all files are
written or none.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/email_ingestion/__init__.py"
MIGRATE = "src/email_ingestion/ledger/migrate.py"
DOCKERFILE = "deploy/docker/Dockerfile"
INSTALL = "docs/install.md"
UPGRADING = "docs/upgrading.md"
UNRELEASED = "## [Unreleased]\n"
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_OURS = re.compile(r'^(__version__ = ")([^"]+)(")$', re.MULTILINE)
_LABEL = re.compile(r"^(ARG VERSION=).*$", re.MULTILINE)
_HEAD = re.compile(r'^HEAD = "(\d{4})"$', re.MULTILINE)
_RELEASES = re.compile(r"^(RELEASES = \{)([^}]*)(\})", re.MULTILINE)
_ROWS = re.compile(r"^(\| \d+\.\d+\.\d+ \| \d{4} \| 0001 to .*\n)+", re.MULTILINE)


class Refused(Exception):
    """Says what stands in the way."""


def prepare(root: Path, version: str, day: str) -> dict[str, str]:
    """Return the new text of each file that changes; raises Refused and changes nothing."""
    texts = {name: (root / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", PACKAGE, MIGRATE)}
    texts |= {name: (root / name).read_text(encoding="utf-8") for name in (DOCKERFILE, INSTALL, UPGRADING)}
    before = _the_only(_OURS, texts[PACKAGE], PACKAGE)[2]
    if not _VERSION.fullmatch(version):
        raise Refused(f"{version} is no version: three numbers, as 1.2.3")
    if _numbers(version) <= _numbers(before):
        raise Refused(f"{version} does not come after {before}, which {PACKAGE} has")
    if f" to {version}\n" not in texts[UPGRADING]:
        raise Refused(f"{UPGRADING} does not say what the version needs: write a section `### {before} to {version}`")
    head = _the_only(_HEAD, texts[MIGRATE], MIGRATE)[1]
    texts["CHANGELOG.md"] = _released(texts["CHANGELOG.md"], version, day)
    texts[PACKAGE] = _OURS.sub(rf"\g<1>{version}\g<3>", texts[PACKAGE])
    texts[DOCKERFILE] = _replaced(_LABEL, rf"\g<1>{version}", texts[DOCKERFILE], DOCKERFILE)
    texts[MIGRATE] = _replaced(_RELEASES, rf'\g<1>\g<2>, "{version}": "{head}"\g<3>', texts[MIGRATE], MIGRATE)
    texts[INSTALL] = _with_schema(texts[INSTALL], version, head)
    return {name: text for name, text in texts.items() if name != UPGRADING}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split("."))


def _the_only(pattern: re.Pattern[str], text: str, name: str) -> re.Match[str]:
    found = list(pattern.finditer(text))
    if len(found) != 1:
        raise Refused(f"{name} has {len(found)} lines like {pattern.pattern}, and should have one")
    return found[0]


def _replaced(pattern: re.Pattern[str], by: str, text: str, name: str) -> str:
    _the_only(pattern, text, name)
    return pattern.sub(by, text)


def _released(changelog: str, version: str, day: str) -> str:
    """Give the section of what is not released the name of the version, and begin an empty one."""
    if f"\n## [{version}]" in changelog:
        raise Refused(f"CHANGELOG.md has a section [{version}] already")
    if changelog.count(f"\n{UNRELEASED}") != 1:
        raise Refused("CHANGELOG.md has not one section `## [Unreleased]`")
    above, below = changelog.split(f"\n{UNRELEASED}")
    noted = below.partition("\n## [")[0]
    if not any(line.strip() and not line.startswith("#") for line in noted.splitlines()):
        raise Refused("CHANGELOG.md has nothing under [Unreleased]: there is nothing to release")
    return f"{above}\n{UNRELEASED}\n## [{version}] - {day}\n{below}"


def _with_schema(page: str, version: str, head: str) -> str:
    """Add the version to the table of what each makes and uses, with what the last one says of later schemas."""
    rows = _the_only(_ROWS, page, INSTALL)[0]
    later = rows.rstrip("\n").rpartition("; ")[2]
    row = f"| {version} | {head} | 0001 to {head}, which it brings to {head}; {later}\n"
    return page.replace(rows, rows + row)


def main() -> int:
    """Write the files, or say why not; return the exit code."""
    parser = argparse.ArgumentParser(description="Turn [Unreleased] into a version; nothing is committed.")
    parser.add_argument("version", help="the next version, as 1.2.3")
    day = datetime.fromtimestamp(float(os.environ.get("SOURCE_DATE_EPOCH") or datetime.now(UTC).timestamp()), UTC)
    version = parser.parse_args().version
    try:
        texts = prepare(ROOT, version, f"{day:%Y-%m-%d}")
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name, text in texts.items():
        (ROOT / name).write_text(text, encoding="utf-8")
    sys.stdout.write(
        f"{version}: {', '.join(sorted(texts))}. Look (git diff), try (make check), then:\n"
        f"  git commit -am 'Release {version}' && git tag v{version} && make release\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
