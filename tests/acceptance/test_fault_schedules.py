"""Two short schedules of overlapping faults; `python -m bench.fault_schedules` plays others for hours."""

from __future__ import annotations

import pytest

from bench.fault_schedules.kinds import CHOICES
from bench.fault_schedules.play import play
from bench.fault_schedules.schedule import read

SCHEDULES = (
    "gmail sqlite workers=2 messages=20 seed=1: worker_killed@1.0+2.0 redis_network:cut@1.5+2.0 webhook:429@2.0+2.0",
    "dovecot postgresql workers=1 messages=20 seed=2: dovecot_restored@1.0+3.0 postgres_killed@2.0+2.0",
)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("text", SCHEDULES, ids=["gmail and SQLite", "Dovecot and PostgreSQL"])
def test_faults_that_overlap_lose_nothing_and_bury_nothing(text: str):
    outcome = play(read(text, CHOICES))
    assert not outcome.complaints
    assert outcome.recovery is not None
