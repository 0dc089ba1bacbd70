"""What processes ask of stores, and how they tell each other."""

from __future__ import annotations

import subprocess
import sys

from ntkpipe.storage.statistics import Exchange, Requests, Statistics


def asked(requests: int, retries: int = 0) -> Statistics:
    return Statistics({"get": Requests(requests, retries, 10 * requests, 0)}, {"server": retries} if retries else {})


def test_sums_are_taken_by_kind_and_cause() -> None:
    first = Statistics({"get": Requests(3, 1, 20, 0), "put": Requests(1, 0, 0, 7)}, {"server": 1}, 0.5)
    second = Statistics({"get": Requests(2, 2, 10, 0), "list": Requests(1)}, {"server": 1, "throttled": 1}, 0.25)
    total = first + second
    assert total.kinds == {"get": Requests(5, 3, 30, 0), "list": Requests(1), "put": Requests(1, 0, 0, 7)}
    assert total.causes == {"server": 2, "throttled": 1}
    assert (total.requests, total.retries, total.waited) == (7, 3, 0.75)


def test_a_report_holds_all_stores_of_the_process() -> None:
    process = Exchange()
    assert process.report() is None
    first, second = process.counters(), process.counters()
    assert process.report() is None
    first.sent("get")
    second.repeats("get", "throttled", 0.1)
    second.sent("get")
    told = process.report()
    assert told is not None
    assert told[1].kinds["get"] == Requests(2, 1)
    assert told[1].causes == {"throttled": 1}


def test_reports_count_once_whatever_is_lost_late_or_repeated() -> None:
    """A result that never arrives (its task was cancelled, or copied) is made up for by the next of its process."""
    process = Exchange()
    for told in (None, ("a", asked(4, 1)), ("b", asked(2)), ("a", asked(9, 3)), ("a", asked(4, 1)), ("a", asked(9, 3))):
        process.hear(told)
    assert process.heard().requests == 11
    assert process.heard().retries == 3


def test_what_this_process_tells_itself_is_not_counted_twice() -> None:
    process = Exchange()
    process.counters().sent("get")
    process.hear(process.report())
    assert process.heard() == Statistics()


def test_another_process_has_another_name() -> None:
    code = "from ntkpipe.storage.statistics import PROCESS as p; p.counters().sent('get'); print(p.report()[0])"
    process = Exchange()
    process.counters().sent("get")
    mine = process.report()
    assert mine is not None
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told != mine[0]
