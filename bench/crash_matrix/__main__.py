"""The command line of the crash matrix; exit code 0 when every promise held, 1 when one was broken."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.crash_matrix.catalogue import FAULTS, Fault
from bench.crash_matrix.databases import KINDS, missing
from bench.crash_matrix.published import line_of, lines_in, table
from bench.crash_matrix.report import broken, commit_of_tree, page, write
from bench.crash_matrix.rounds import Row, play
from bench.crash_matrix.world import running_world

EXAMPLES = """examples:
  python -m bench.crash_matrix --database both --rounds 20 --messages 500 --write docs/reliability.md
  python -m bench.crash_matrix --faults redis_flushed,worker_killed --database postgresql --seed 7
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m bench.crash_matrix",
        description="Break the running system in every known way and prove that no mail is lost or doubled.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--rounds", type=int, default=5, metavar="N", help="of each fault (default %(default)s)")
    made.add_argument("--messages", type=int, default=300, metavar="M", help="in a round (default %(default)s)")
    made.add_argument(
        "--database",
        choices=[*KINDS, "both"],
        default="sqlite",
        help="SQLite, PostgreSQL or both (default %(default)s)",
    )
    made.add_argument("--faults", type=_chosen, default=list(FAULTS.values()), metavar="A,B", help="default: all")
    made.add_argument("--seed", type=int, default=1, help="of sizes and instants (default %(default)s)")
    made.add_argument("--write", type=Path, metavar="FILE", help="put the lines into that report")
    made.add_argument("--list", action="store_true", help="list the faults and do nothing")
    return made


def _chosen(text: str) -> list[Fault]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no fault is named {unknown[0]!r}; --list shows them")
    return [FAULTS[name] for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the matrix."""
    options = parser().parse_args(argv)
    console = Console()
    if options.list:
        for fault in FAULTS.values():
            console.print(f"{fault.name:18} {fault.text}", highlight=False)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no process is left behind
    started = time.monotonic()
    rows = _play_all(options, Console(stderr=True))
    console.print(
        table([line_of(row, commit_of_tree()) for row in rows]), soft_wrap=True, highlight=False, markup=False
    )
    for sentence in broken(rows):
        console.print(f"BROKEN {sentence}", soft_wrap=True, highlight=False, markup=False)
    if options.write:
        kept = lines_in(options.write)
        seconds = time.monotonic() - started
        write(options.write, page(rows, kept, order=list(FAULTS), seed=options.seed, seconds=seconds))
    return 0 if all(row.good for row in rows) else 1


def _play_all(options: argparse.Namespace, console: Console) -> list[Row]:
    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    kinds = KINDS if options.database == "both" else (options.database,)
    chosen = [(fault, kind) for fault in options.faults for kind in kinds if kind in fault.databases]
    rows = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(chosen) * options.rounds)
        for done, (fault, kind) in enumerate(chosen):
            progress.update(task, description=fault.name, completed=done * options.rounds)
            row = _play(fault, kind, options, lambda: progress.advance(task))
            rows.append(row)
            progress.console.print(f"{fault.name} ({kind}): {_outcome(row)}", highlight=False, markup=False)
            for sentence in broken([row]):
                progress.console.print(f"BROKEN {sentence}", highlight=False, markup=False)
        progress.update(task, completed=len(chosen) * options.rounds)
    return rows


def _outcome(row: Row) -> str:
    if row.skipped:
        return f"not run, {row.skipped}"
    return f"{row.rounds} rounds, " + ("every promise held" if row.good else "BROKEN")


def _play(fault: Fault, kind: str, options: argparse.Namespace, tick: Callable[[], None]) -> Row:
    obstacle = fault.obstacle() or missing(kind)
    if obstacle:
        return Row(fault, kind, skipped=obstacle)
    with (
        tempfile.TemporaryDirectory(prefix="crash-matrix-", ignore_cleanup_errors=True) as folder,
        running_world(Path(folder), kind) as world,
        fault.surroundings(world),
    ):
        return play(
            fault,
            world,
            rounds=options.rounds,
            messages=options.messages,
            seed=options.seed,
            tick=tick,
            ask_doctor=True,
        )


if __name__ == "__main__":
    sys.exit(main())
