"""Quantities with units, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.base.errors import BadQuantity
from livemove.base.units import format_duration, format_rate, format_size, parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000MB", 10**9), ("1000MiB", 1000 << 20), ("1.5GiB", 3 << 29), ("4096B", 4096), ("2tb", 2 * 10**12), (77, 77)],
)
def test_sizes(text: str | int, value: int):
    assert parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("8Gbit", 10**9), ("1000MB", 10**9), ("100MiB/s", 100 << 20), ("940Mbit/s", 117_500_000), ("8kbit", 1000)],
)
def test_rates(text: str, value: int):
    assert parse_rate(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("300ms", 0.3), ("10m", 600), ("1.5h", 5400), ("90s", 90), ("250us", 0.00025)]
)
def test_durations(text: str, value: float):
    assert parse_duration(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "12", "MB", "-1MB", "1,5GB", "10 parsecs", "1e9B", "9" * 100 + "B", "8Gbit"])
def test_no_size(text: str):
    with pytest.raises(BadQuantity):
        parse_size(text)


@pytest.mark.parametrize("text", ["10", "10b", "10s", "fast"])
def test_no_rate(text: str):
    with pytest.raises(BadQuantity):
        parse_rate(text)


@pytest.mark.parametrize("text", ["10", "10 days", "soon", "10MB"])
def test_no_duration(text: str):
    with pytest.raises(BadQuantity):
        parse_duration(text)


@given(st.text(max_size=80))
def test_garbage_is_always_a_bad_quantity(text: str):
    for parse in (parse_size, parse_rate, parse_duration):
        try:
            parse(text)
        except BadQuantity:
            continue


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (format_size(0), "0 B"), (format_size(1536), "1.5 KiB"), (format_size(5 << 30), "5.0 GiB"),
        (format_rate(117_500_000), "940 Mbit/s"), (format_rate(1.25e9), "10 Gbit/s"), (format_rate(10), "80 bit/s"),
        (format_duration(0.034), "34 ms"), (format_duration(9.27), "9.27 s"), (format_duration(725), "12 min 5 s"),
        (format_duration(7300), "2 h 1 min"), (format_duration(0.0002), "200 us"), (format_duration(0), "0 ms"),
    ],
)  # fmt: skip
def test_texts(text: str, wanted: str):
    assert text == wanted
