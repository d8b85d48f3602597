"""The measurements themselves: what they measure on, and what they make of it."""

from __future__ import annotations

import threading
from functools import partial
from itertools import islice
from statistics import median
from typing import Any, cast

import pytest

from bench import capacity, parser
from bench.corpus import letters
from bench.crash_matrix.truth import READY, Truth, Watch
from bench.rounds import Failed, Run, race
from bench.run import page
from bench.tables import Aim, Section


def test_the_corpus_is_the_same_every_time():
    assert list(letters(20)) == list(islice(letters(40), 20))


def test_half_of_the_corpus_is_under_about_twelve_kilobytes():
    assert 9_000 < median(map(len, letters(400))) < 15_000


def test_between_two_answers_that_both_gave_a_reason_nothing_was_silent():
    truth, rest = Truth(), cast("Any", None)
    watch = Watch(rest, truth, threading.Event(), 0, ())
    began = watch._moved
    for seconds, reason in ((5, ""), (8, "redis"), (50, "redis"), (60, "")):
        watch._note(READY, reason, began + seconds)
    assert truth.silent[READY] == pytest.approx(10)  # from the last answer that gave one


def test_the_middle_round_counts():
    times = iter([1.0, 9.0, 2.0])
    found, out = race({"one": lambda: Run(10, next(times), 0.1)}, 3, lambda _: None)
    assert (found["one"].rate, out) == (5.0, {})


def test_who_fails_drops_out_with_the_reason():
    def fail() -> Run:
        raise Failed("no such server")

    found, out = race({"good": partial(Run, 10, 1.0, 0.1), "bad": fail}, 2, lambda _: None)
    assert (list(found), out) == (["good"], {"bad": "no such server"})


def test_the_page_says_which_aims_were_missed():
    aims = [Aim("speed", 3.0, 2.0), Aim("wait", 30.0, 25.0, "ms", most=True)]
    text = page([Section("Title", "How.", ("a", "b"), [("1", "2")], aims)], {"worker": "no Redis"}, "- a machine")
    assert "| speed | ≥ 2 × | 3 × | yes |" in text
    assert "| wait | ≤ 25 ms | 30 ms | **no** |" in text
    assert "- worker: no Redis" in text


def test_parsers_are_asked_for_the_same_things():
    raw = next(iter(letters(1)))
    fields, people, date, texts, files = parser.record(raw)
    assert dict(fields)["MIME-Version"] == "1.0"
    assert (len(people), bool(date), bool(texts or files)) == (6, True, True)


def test_the_capacity_page_scales_what_was_measured():
    text = capacity.page(capacity.Costs(0.0005, 0.002, 20_000, 50_000, 30_000), "- a machine")
    assert "| Producer, CPU | 0.14 core hours |" in text
    assert "| 10,000 | 2,000,000 | 1, 1 |" in text
    assert "Not measured" in text


def test_a_simulated_day_without_enough_cores_piles_up():
    enough, too_few = capacity.simulate(1_000, 0.1, 1), capacity.simulate(1_000, 1.0, 1)
    assert enough.most < too_few.most
    assert enough.wait < too_few.wait
