"""Types the blocks of the runbooks in the spelling of Compose, page by page, each page in one shell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.drills.play import RUNBOOKS
from tests.drills.runbook import Fence, pages

# Blocks that are not typed there, by a regular expression for all of their text.
NOT_TYPED = {
    r"openssl s_client .*": "the network of this stage reaches no mail server of the world",
    r"(sudo|logrotate|journalctl|systemctl list-timers|nft|sed -[ei]|stat) .*": "of the machine, not of the containers",
    r"export (OLD|KEY)=.*|REDISCLI_AUTH=\$OLD .*": "changes the .env and the redis.conf of a machine",
    r"python producer\.py --auth-setup.*": "waits for a person with a browser",
    r"\(cd backups/.*": "commands.sh says how: in a shell of the container",
    r"kill .*|python worker\.py --instance 4|redis-cli .* CONFIG SET .*": "commands.sh says what is done instead",
    r"email-ingestion alert test": "nobody is there to be told",
    r"email-ingestion (drain|refill) .*": "needs mail that waits",
    r"email-ingestion (quarantine accept|database downgrade|evidence collect --out evidence-loop).*": "of one fault",
    r"export (EMAIL_ID|LETTER|KIND)=.*|.*\$(EMAIL_ID|LETTER|KIND)\b.*": "needs a message that is stuck or dead",
    r"export INCIDENT=INC-\$\(date \+.*": "what communications.md has collected has that name",
    r"sed -n 2p .*": "needs the file of a purge",
    r"email-ingestion (check volume|quality .*|reconcile --sink .*)": "needs other mail, or another sink",
    r"ls -l /proc/.*|grep (imap|loop)_\S+ .*": "shows nothing while nothing is wrong",
}
WRONG = (
    *(
        "Traceback (most",
        "Read-only file system",
        "not a TTY",
        "No such file",
        "command not found",
        "Permission denied",
    ),
    *(
        "Error response from daemon",
        "unknown flag",
        "no such service",
        "is not running",
        "unbound variable",
        "syntax error",
    ),
)
SCRIPT = r"""
cd /srv/email-ingestion
. deploy/docker/commands.sh
set +eu
for block in {folder}/{page}-*.sh; do
    SECONDS=0
    {{ eval "$(<"$block")"; }} </dev/null >"$block.out" 2>&1
    echo "$? $SECONDS" >"$block.code"
done
"""


# What lasts until it is taken back, and what takes it back: typed wherever it stands.
ORDER = r"email-ingestion (pause|resume|degrade|priority|route|log-level) .*"
# Restarts that stand on several pages, with the one where it matters what has started afterwards.
TYPED_ON = {
    "./scripts/start.sh --workers 3": "scaling",
    "./scripts/stop.sh && ./scripts/start.sh --workers 2": "security",
}


def blocks() -> Iterator[tuple[str, Fence]]:
    """What is typed: each text once, but for orders and what sets a variable."""
    seen = set()
    for page in pages(RUNBOOKS):
        name = page.path.stem
        for fence in page.fences:
            text = fence.text.strip()
            is_left_out = fence.language != "bash" or any(re.fullmatch(each, text, re.DOTALL) for each in NOT_TYPED)
            plain = re.sub(r"\s*#.*", "", text)
            is_needed = "export" in text or re.fullmatch(ORDER, plain)
            is_elsewhere = TYPED_ON.get(plain, name) != name or (plain in seen and not is_needed)
            if not is_left_out and not is_elsewhere and not (fence.step and fence.step.skip):
                seen.add(plain)
                yield name, fence


def type_all(
    shell: Callable[[str], object], folder: Path, inside: str, settled: Callable[[], object] = lambda: None
) -> list[str]:
    """Type them; returns what went wrong. `folder` is seen as `inside` by the shell.

    `settled` is called after each page, which leaves nothing behind that holds mail.
    """
    found = list(blocks())
    for number, (page, fence) in enumerate(found):
        (folder / f"{page}-{number:03}.sh").write_text(fence.text)
    wrong = []
    for page in dict.fromkeys(page for page, _ in found):
        shell(SCRIPT.format(folder=inside, page=page))
        try:
            settled()
        except AssertionError as error:
            wrong.append(f"after {page}: {error}")
    for number, (page, fence) in enumerate(found):
        path = folder / f"{page}-{number:03}.sh"
        output = Path(f"{path}.out").read_text(errors="replace")
        code = int(Path(f"{path}.code").read_text().split()[0])
        if code not in {0, 1} or any(each in output for each in WRONG):
            wrong.append(f"{fence.where}: {code}\n$ {fence.text}{output[-600:]}")
    return wrong
