from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.base.errors import BadQuantity
from livemove.lab import rates
from livemove.lab.rates import Sample, Window

# 10 bytes a second for 2 s, nothing for 1 s, 30 bytes a second for 1 s; read at odd times
STEPS = [Sample(0, 0), Sample(1.25, 12), Sample(2, 20), Sample(3, 20), Sample(3.5, 35), Sample(4, 50)]


def test_between_readings_bytes_are_evenly_spread() -> None:
    assert rates.total_at(STEPS, 2) == 20
    assert rates.total_at(STEPS, 3.25) == 27.5
    assert rates.mean(STEPS, 2, 4) == Window(2, 4, 15)
    assert rates.mean(STEPS, 2.5, 3.25) == Window(2.5, 3.25, 10)


def test_the_worst_window_need_not_begin_at_a_reading() -> None:
    assert rates.worst(STEPS, 1, 0, 4) == Window(2, 3, 0)
    # ends where the silence ends
    assert rates.worst(STEPS, 2, 0, 4).start_s == 1
    # from 2.9 s on only the end of the silence is inside
    assert rates.worst(STEPS, 1, 2.9, 4).rate_bytes_per_s == pytest.approx(27)


def test_windows_are_in_order_and_fill_the_time() -> None:
    found = rates.windows(STEPS, 1, 0, 4)
    assert [window.start_s for window in found] == [0, 0.25, 1, 1.25, 2, 2.5, 3]
    assert rates.windows(STEPS, 4, 0, 4) == [Window(0, 4, 12.5)]


@pytest.mark.parametrize(
    ("window_s", "start_s", "end_s"), [(1, -1, 4), (1, 0, 4.5), (4.1, 0, 4), (0, 0, 4), (1, 4, 3), (-1, 0, 4)]
)
def test_what_was_not_recorded_is_refused(window_s: float, start_s: float, end_s: float) -> None:
    with pytest.raises(BadQuantity):
        rates.worst(STEPS, window_s, start_s, end_s)
    with pytest.raises(BadQuantity):
        rates.mean(STEPS, 1, 1)
    with pytest.raises(BadQuantity):
        rates.total_at([], 0)


steps = st.lists(
    st.tuples(st.integers(1, 2000), st.integers(0, 1 << 30)), min_size=2, max_size=30
)  # milliseconds and bytes from one reading to the next


@given(steps, st.floats(0, 1), st.floats(0.01, 1))
def test_no_window_is_worse_than_the_worst(taken: list[tuple[int, int]], where: float, part: float) -> None:
    samples = [Sample(0, 0)]
    for milliseconds, more in taken:
        samples.append(Sample(samples[-1].at_s + milliseconds / 1e3, samples[-1].total_bytes + more))
    end_s = samples[-1].at_s
    window_s = end_s * part
    any_start_s = (end_s - window_s) * where
    any_window = rates.mean(samples, any_start_s, min(any_start_s + window_s, end_s))
    worst = rates.worst(samples, window_s, 0, end_s)
    # times are rounded, and a window may be all in one steep millisecond
    assert worst.rate_bytes_per_s <= any_window.rate_bytes_per_s * (1 + 1e-6) + 1
