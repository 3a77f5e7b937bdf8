"""`.` a message every 5 ms and its answer 1 ms later, unless the table says otherwise; times in milliseconds."""

from __future__ import annotations

import pytest

from livemove.lab.gaps import LONGEST_KEPT, Gap, GapLedger, OutOfOrder, RoundTrips, longest_between

# (what, at ms): s send, a answer to the oldest, x connection lost
Script = list[tuple[str, float]]


def play(script: Script) -> tuple[GapLedger, list[Gap]]:
    ledger, noted, number, oldest = GapLedger(), [], 0, 1
    for what, at_ms in script:
        if what == "s":
            number += 1
            ledger.message_sent(number, at_ms / 1e3)
        elif what == "a":
            gap = ledger.answer_arrived(oldest, at_ms / 1e3)
            oldest += 1
            noted += [gap] if gap else []
        else:
            ledger.connection_lost(at_ms / 1e3)
            oldest = number + 1
    return ledger, noted


STEADY: Script = [("s", 0), ("a", 1), ("s", 5), ("a", 6), ("s", 10), ("a", 11)]


@pytest.mark.parametrize(
    ("script", "now_ms", "longest_ms", "start_ms"),
    [
        pytest.param(STEADY, 15, 1, None, id="quiet: the round trip, not the interval"),
        pytest.param([*STEADY, ("s", 500), ("a", 501)], 501, 1, None, id="the probe itself paused: nothing was due"),
        pytest.param([*STEADY, ("s", 15), ("s", 20), ("s", 25), ("a", 315), ("a", 315), ("a", 315)], 320, 300, 15,
                     id="from the first unanswered message to the first answer"),
        pytest.param([("s", 0), ("s", 5), ("a", 7), ("s", 10), ("a", 107), ("a", 107)], 110, 100, 7,
                     id="from the last arrival when an answer was due then"),
        pytest.param([*STEADY, ("s", 15)], 115, 100, 15, id="one that lasts still"),
        pytest.param([*STEADY, ("s", 15), ("x", 40), ("s", 90), ("a", 95)], 96, 80, 15, id="a lost connection ends no gap"),
        pytest.param([*STEADY, ("x", 12), ("s", 60), ("a", 62)], 63, 50, 12, id="lost while nothing was due: from the loss"),
        pytest.param([*STEADY, ("x", 12)], 112, 100, 12, id="lost and never back"),
        pytest.param([], 1000, None, None, id="never connected: no gap, and nothing answered"),
    ],
)  # fmt: skip
def test_the_longest_gap(script: Script, now_ms: float, longest_ms: float | None, start_ms: float | None) -> None:
    ledger, _ = play(script)
    longest = ledger.longest(now_ms / 1e3)
    if longest_ms is None:
        assert longest == []
        return
    assert longest[0].length_s * 1e3 == pytest.approx(longest_ms)
    if start_ms is not None:
        assert longest[0].start_s * 1e3 == pytest.approx(start_ms)
        assert longest[0].end_s == pytest.approx(longest[0].start_s + longest[0].length_s)


def test_only_gaps_of_20_ms_are_noted_and_each_once() -> None:
    _, noted = play([("s", 0), ("a", 19.9), ("s", 100), ("s", 105), ("a", 120.1), ("a", 120.1)])
    assert [round(gap.length_s * 1e3, 3) for gap in noted] == [20.1]


def test_messages_answers_and_losses_are_counted() -> None:
    ledger, _ = play([*STEADY, ("s", 15), ("s", 20), ("x", 40), ("s", 90), ("a", 95)])
    assert (ledger.sent, ledger.answered, ledger.lost_connections, ledger.unanswered) == (6, 4, 1, 0)


def test_a_wrong_answer_is_refused_and_changes_nothing() -> None:
    ledger, _ = play([("s", 0), ("s", 5)])
    for wrong in (0, 2, 3):
        with pytest.raises(OutOfOrder):
            ledger.answer_arrived(wrong, 0.5)
    assert ledger.answered == 0
    assert ledger.answer_arrived(1, 0.1) == Gap(0.1, 0.0)
    ledger.answer_arrived(2, 0.1)
    with pytest.raises(OutOfOrder, match="none was due"):
        ledger.answer_arrived(3, 0.2)


def test_the_list_of_longest_gaps_is_bounded_and_sorted() -> None:
    ledger = GapLedger()
    for number in range(1, 50):
        ledger.message_sent(number, number)
        ledger.answer_arrived(number, number + (number * 37 % 50) / 1000)
    lengths = [round(gap.length_s * 1e3) for gap in ledger.longest(100.0)]
    assert lengths == sorted((number * 37 % 50 for number in range(1, 50)), reverse=True)[:LONGEST_KEPT]


def test_an_open_gap_is_none_when_nothing_is_due() -> None:
    ledger, _ = play(STEADY)
    assert ledger.open_gap(1.0) is None
    ledger.message_sent(4, 1.0)
    assert ledger.open_gap(1.5) == Gap(0.5, 1.0, ended=False)


@pytest.mark.parametrize(
    ("start_s", "end_s", "start_of_found_s"),
    [(0, 100, 20), (0, 15, 10), (10.2, 10.3, 10), (0, 9.9, None), (10.6, 19, None), (25, 40, 30), (20.9, 21.0, 20)],
)
def test_the_longest_gap_of_a_stretch_of_time(start_s: float, end_s: float, start_of_found_s: float | None) -> None:
    gaps = [Gap(0.5, 10.0), Gap(1.0, 20.0), Gap(0.1, 30.0)]
    found = longest_between(gaps, start_s, end_s)
    assert (found.start_s if found else None) == start_of_found_s


def test_quantiles_are_within_two_percent() -> None:
    trips = RoundTrips()
    assert trips.quantile_s(0.5) is None
    for number in range(1, 1001):
        trips.add(number * 1e-5)
    assert trips.quantile_s(0.5) == pytest.approx(5e-3, rel=0.021)
    assert trips.quantile_s(0.99) == pytest.approx(9.9e-3, rel=0.021)
    assert trips.quantile_s(1.0) == pytest.approx(1e-2, rel=0.021)
    trips.add(0.0)
    assert trips.quantile_s(0.0001) == pytest.approx(1e-6, rel=0.021)
