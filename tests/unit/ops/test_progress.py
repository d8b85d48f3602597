"""How far a single pass is: a progress_bar for each account on a terminal, and not a byte anywhere else."""

from __future__ import annotations

import io
import sys

import pytest

from email_ingestion.events import HistoryWalked
from email_ingestion.ops.progress import HistoryProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("where", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_pass_over_old_mail_is_shown_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, where: type[io.StringIO], shown: bool
):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = where()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = HistoryProgress()
    with progress:
        progress(HistoryWalked("sales", 1000, 0.5, 10.0))
        progress(HistoryWalked("support", 10, 0.99, 1.0))
    assert [word in screen.getvalue() for word in ("sales", "50%", "support", "99%")] == [shown] * 4
