"""What the site of `make docs` needs beyond its pages: its navigation, and links that lead out of docs/.

The navigation is the index docs/README.md: a section for each reader, with the pages in the order of its links.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READER = re.compile(r"^\*\*(.+?)\*\*", re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_config(config: Any) -> Any:
    """Make the navigation; a page that the index does not name is refused by mkdocs."""
    config.nav = ["README.md"]
    _, *sections = READER.split((ROOT / "docs" / "README.md").read_text())
    named: set[str] = set()
    for reader, text in zip(sections[::2], sections[1::2], strict=True):
        pages = [link for _, link, _ in LINK.findall(text) if (ROOT / "docs" / link).is_file()]
        pages = [page for page in dict.fromkeys(pages) if page.endswith(".md") and not page.startswith("..")]
        config.nav.append({reader: [page for page in pages if page not in named]})
        named.update(pages)
    decisions = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    config.nav.append({"Decisions": [f"decisions/{name}" for name in decisions]})
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Lead links to files and folders outside docs/ to the repository; one that names nothing stays, and is refused."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def target(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        path = posixpath.normpath(posixpath.join(folder, link))
        outside = not path.startswith("docs/") or (ROOT / path).is_dir() or path.endswith(".toml")
        if "://" in link or link.startswith("mailto:") or not outside or not (ROOT / path).exists():
            return match.group()
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{before}{config.repo_url}/{kind}/main/{path}{after}"

    return LINK.sub(target, markdown)
