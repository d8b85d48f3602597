"""Write a CycloneDX bill of materials of the locked dependencies, without a network: `python scripts/sbom.py [FILE]`.

Names, versions and hashes are those of deploy/docker/requirements.lock, licences those of docs/dependencies.md. The
same lock gives the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = (ROOT / "requirements.lock", ROOT / "deploy" / "docker" / "requirements.lock")
REVIEW = ROOT / "docs" / "dependencies.md"
_PINNED = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\]+))?"
)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_REVIEWED = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def locked(lock: Path) -> Iterator[dict[str, Any]]:
    """Yield name, version, marker and hashes of each package in a lock."""
    package: dict[str, Any] | None = None
    for line in lock.read_text().splitlines():
        if found := _PINNED.match(line):
            if package:
                yield package
            package = {**found.groupdict(), "hashes": []}
        if package:
            package["hashes"] += _HASH.findall(line)
    if package:
        yield package


def reviewed() -> dict[str, tuple[str, str, str]]:
    """Return licence, reason and what it may touch of each package in the review."""
    return {name: (licence, why, touches) for name, licence, why, touches in _REVIEWED.findall(REVIEW.read_text())}


def bill_of_materials(lock: Path) -> dict[str, Any]:
    """Return the bill of the packages in a lock."""
    licences = reviewed()
    version = re.search(
        r'^__version__ = "([^"]+)"', (ROOT / "src/email_ingestion/__init__.py").read_text(), re.MULTILINE
    )
    ours = {
        "type": "application",
        "bom-ref": "email-ingestion",
        "name": "email-ingestion",
        "version": version[1] if version else "unknown",
        "licenses": [{"license": {"id": "MIT"}}],
    }
    components = [_component(package, licences[package["name"]][0]) for package in locked(lock)]
    content = json.dumps(components, sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {"component": ours},
        "components": components,
        "dependencies": [{"ref": "email-ingestion", "dependsOn": [each["bom-ref"] for each in components]}],
    }


def _component(package: dict[str, Any], licence: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{package['name']}@{package['version']}"
    files = [
        {"type": "distribution", "url": purl, "hashes": [{"alg": "SHA-256", "content": each}]}
        for each in package["hashes"]
    ]
    component = {
        "type": "library",
        "bom-ref": purl,
        "name": package["name"],
        "version": package["version"],
        "purl": purl,
        "licenses": [{"expression": licence}],
        "externalReferences": files,
    }
    if package["marker"]:
        component["scope"] = "optional"
        component["properties"] = [{"name": "email-ingestion:marker", "value": package["marker"].strip()}]
    return component


def main(arguments: list[str]) -> None:
    """Write the bill to the file that is named, or to dist/sbom.cdx.json."""
    target = Path(arguments[0]) if arguments else ROOT / "dist" / "sbom.cdx.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    bill = bill_of_materials(LOCKS[1])
    target.write_text(json.dumps(bill, indent=1) + "\n")
    print(f"{target}: {len(bill['components'])} packages")  # noqa: T201 - a command


if __name__ == "__main__":
    main(sys.argv[1:])
