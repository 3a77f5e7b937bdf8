"""Quantities as people write them, and back: sizes in bytes, rates in bytes per second, durations in seconds.

Decimal and binary prefixes are kept apart, unlike in PowerShell, where ``1000MB`` means 1000 MiB: here ``MB`` is 10**6
bytes and ``MiB`` is 2**20. Rates may be given in bits (``8Gbit``) or bytes (``1000MB``); ``/s`` may follow.
"""

from __future__ import annotations

import re

from livemove.base.errors import BadQuantity

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_PREFIX = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*(?:/s)?)\s*")
_DURATION = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text) if len(text) <= 64 else None
    if match is None or not match[2]:
        raise BadQuantity(f"'{text[:64]}' is not a {what}.", remedy=f"Write a number and a unit, such as {example}.")
    return float(match[1]), match[2]


def parse_size(text: str | int) -> int:
    """Bytes from ``512MiB``, ``1GB``, ``4096B``; an integer passes as bytes. Raises BadQuantity without a unit."""
    if isinstance(text, int):
        return text
    number, unit = _split(text, "size", "512MiB or 2GB")
    if unit[-1] in "Bb" and unit[:-1].lower() in _PREFIX and not unit.endswith("bit"):
        return int(number * _PREFIX[unit[:-1].lower()])
    raise BadQuantity(
        f"'{text}' has no unit of size.", remedy="Use B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (1024)."
    )


def parse_rate(text: str) -> int:
    """Bytes per second from ``8Gbit``, ``1000MB``, ``100MiB/s``. Raises BadQuantity without a unit."""
    number, unit = _split(text, "rate", "8Gbit or 1000MB")
    unit = unit.removesuffix("/s")
    if unit.endswith("bit") and unit[:-3].lower() in _PREFIX:
        return int(number * _PREFIX[unit[:-3].lower()] / 8)
    if unit.endswith("B") and unit[:-1].lower() in _PREFIX:
        return int(number * _PREFIX[unit[:-1].lower()])
    raise BadQuantity(
        f"'{text}' has no unit of rate.",
        remedy="Use bits (kbit, Mbit, Gbit) or bytes (KB, MB, GB, KiB, MiB, GiB) per second.",
    )


def parse_duration(text: str) -> float:
    """Seconds from ``300ms``, ``10m``, ``1.5h``. Raises BadQuantity without a unit."""
    number, unit = _split(text, "duration", "300ms, 90s or 10m")
    if unit not in _DURATION:
        raise BadQuantity(f"'{text}' has no unit of time.", remedy="Use us, ms, s, m or h.")
    return number * _DURATION[unit]


def format_size(size_bytes: float) -> str:
    """``1.5 GiB``; binary prefixes, as memory is counted."""
    for prefix, factor in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= factor:
            return f"{size_bytes / factor:.1f} {prefix}"
    return f"{size_bytes:.0f} B"


def format_rate(rate_bytes_per_s: float) -> str:
    """``940 Mbit/s``; bits, as links are counted."""
    bits = rate_bytes_per_s * 8
    for prefix, factor in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if abs(bits) >= factor:
            return f"{bits / factor:.3g} {prefix}" if bits < 1000 * factor else f"{bits / factor:.0f} {prefix}"
    return f"{bits:.0f} bit/s"


def format_duration(seconds: float) -> str:
    """``34 ms``, ``9.27 s``, ``12 min 5 s``."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 1e-3 or seconds == 0 else f"{seconds * 1e6:.0f} us"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
