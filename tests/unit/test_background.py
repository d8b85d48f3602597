"""The thread beside the loop: there when there is a job, and gone when there is none."""

from __future__ import annotations

import threading

from email_ingestion.background import BackgroundThread

PATIENCE = 30.0


def test_a_thread_beside_ends_when_there_is_nothing_to_do_and_comes_back():
    beside = BackgroundThread("aside-of-the-test", idle=0.0)
    for number in range(200):
        assert beside.submit(lambda number=number: number).result(PATIENCE) == number
    jobs = [beside.submit(lambda number=number: number) for number in range(200)]
    assert [job.result(PATIENCE) for job in jobs] == list(range(200))
    for thread in [thread for thread in threading.enumerate() if thread.name == "aside-of-the-test"]:
        thread.join(PATIENCE)
        assert not thread.is_alive()
