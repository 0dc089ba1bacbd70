"""The journal of `benchmarks/random_kills.py`: what it counts as repeated, and what it lets excuse a repeat."""

from __future__ import annotations

import math

import pytest

from benchmarks.kills_journal import Evaluation, Kill, Lifetime, count_repeats, read_journal

TILE, OTHER = ("ntk/train", 0, 0), ("ntk/train", 1, 0)
ALWAYS = [Lifetime(0.0, head=1)]


def evaluation(begin, end=math.inf, *, tile=TILE, pid=1, job="01"):
    return Evaluation(tile, begin, pid, job, end)


def kill(begin, end, pids=None):
    return Kill("kill", "gram", begin, end, pids)


def test_a_journal_is_read_by_store_and_an_end_belongs_to_its_process(tmp_path):
    lines = [
        "begin /s ntk/train 0 0 1.0 11 01",
        "begin /other ntk/train 0 0 1.5 11 01",
        "begin /s ntk/train 0 0 2.0 12 01",
        "end /s ntk/train 0 0 3.0 12 01",
        "end /s ntk/train 1 0 4.0 12 01",  # begun by nobody: a tile that was there
        "begin /s ntk/train 1 0 5.0 11 02",
    ]
    (tmp_path / "journal").write_text("\n".join(lines) + "\n")
    assert read_journal(tmp_path / "journal", "/s") == [
        evaluation(1.0, pid=11),
        evaluation(2.0, 3.0, pid=12),
        evaluation(5.0, tile=OTHER, pid=11, job="02"),
    ]


def test_an_end_closes_the_last_evaluation_of_the_tile_by_its_process(tmp_path):
    lines = ["begin /s k 0 0 1.0 7 01", "end /s k 0 0 2.0 7 01", "begin /s k 0 0 3.0 7 01", "end /s k 0 0 4.0 7 01"]
    (tmp_path / "journal").write_text("\n".join(lines))
    assert [e.end for e in read_journal(tmp_path / "journal", "/s")] == [2.0, 4.0]


@pytest.mark.parametrize(
    ("begin", "end", "hit"),
    [
        (1.0, math.inf, True),  # in the making
        (1.0, 9.0, False),  # ended before
        (1.0, 10.5, True),  # its receipt came after the first signal
        (10.5, 10.8, False),  # begun and ended between the signals
        (10.5, math.inf, True),  # begun before the last process was gone
        (11.5, math.inf, False),  # begun after
    ],
)
def test_a_kill_hits_what_is_in_the_making(begin, end, hit):
    one = evaluation(begin, end, pid=5)
    assert kill(10.0, 11.0).hits(one) is hit
    assert kill(10.0, 11.0, [5]).hits(one) is hit
    assert not kill(10.0, 11.0, [6]).hits(one)


def test_every_tile_once_is_nothing():
    found = count_repeats([evaluation(1, 2), evaluation(2, 3, tile=OTHER)], [kill(5, 6)], ALWAYS)
    assert +found == {}


def test_a_repeat_without_a_cause_is_unexplained():
    found = count_repeats([evaluation(1, 2), evaluation(3, 4), evaluation(5, 6)], [], ALWAYS)
    assert +found == {"again": 2, "unexplained": 2}


def test_a_tile_in_the_making_at_a_kill_may_be_made_again_once():
    kills = [kill(2.0, 2.5)]
    evaluations = [evaluation(1), evaluation(1.5, tile=OTHER), evaluation(3, 4), evaluation(5, 6)]
    found = count_repeats(evaluations, kills, ALWAYS)
    # The other tile was never made again: what it was allowed excuses nobody else.
    assert +found == {"again": 2, "in flight": 2, "unexplained": 1}
    assert kills[0].in_flight == 2


def test_an_evaluation_dies_once():
    kills = [kill(2.0, 2.5), kill(3.0, 3.5)]
    count_repeats([evaluation(1), evaluation(2.7), evaluation(4, 5)], kills, ALWAYS)
    assert [one.in_flight for one in kills] == [1, 1]
    kills = [kill(2.0, 2.5), kill(3.0, 3.5)]
    count_repeats([evaluation(1), evaluation(4, 5)], kills, ALWAYS)
    assert [one.in_flight for one in kills] == [1, 0]


def test_only_the_processes_that_were_killed_lose_their_tiles():
    evaluations = [evaluation(1, pid=1), evaluation(1, 4, tile=OTHER, pid=2), evaluation(3, 5, pid=3)]
    found = count_repeats(evaluations, [kill(2.0, 2.5, [1])], ALWAYS)
    assert +found == {"again": 1, "in flight": 1}


def test_what_a_worker_begins_after_its_driver_is_an_orphan():
    lives = [Lifetime(0.0, head=1, end=2.0), Lifetime(3.0, head=1)]
    evaluations = [
        evaluation(1.0, 1.5, tile=OTHER, job="01"),
        evaluation(2.5, 4.0, job="01"),  # its driver is gone
        evaluation(3.5, 5.0, job="02", pid=2),
    ]
    found = count_repeats(evaluations, [], lives)
    assert +found == {"again": 1, "orphans": 1}


def test_a_new_head_counts_its_jobs_anew():
    # The second cluster's first job has the number of the first one's, whose driver is gone.
    lives = [Lifetime(0.0, head=1, end=2.0), Lifetime(3.0, head=2)]
    found = count_repeats([evaluation(1.0, 1.5), evaluation(3.5, 4.0, tile=OTHER, pid=2)], [], lives)
    assert +found == {}


def test_a_second_copy_is_begun_while_the_first_lives():
    first, second = evaluation(1.0, 4.0, pid=1), evaluation(2.0, 5.0, pid=2)
    assert +count_repeats([first, second], [], ALWAYS) == {"again": 1, "copies": 1}
    # Of another driver it is none.
    lives = [Lifetime(0.0, head=1), Lifetime(1.5, head=1)]
    other = evaluation(2.0, 5.0, pid=2, job="02")
    assert +count_repeats([first, other], [], lives) == {"again": 1, "unexplained": 1}


def test_beside_a_process_that_was_killed_there_is_no_second_copy():
    evaluations = [evaluation(1.0, pid=1), evaluation(3.0, 4.0, pid=2)]
    found = count_repeats(evaluations, [kill(2.0, 2.5, [1])], ALWAYS)
    assert +found == {"again": 1, "in flight": 1}
