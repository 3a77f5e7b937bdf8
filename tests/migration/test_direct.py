"""The engine's small parts: the rate it believes in, parameters, the group for the key."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from tests.policy.test_transport import AUTO, FULL

from livemove.migration.dh_group import dh_params_pem, ffdhe2048_prime
from livemove.migration.direct import PAGE_BYTES, RateMeter, multifd_parameters
from livemove.policy.transport import agree


def test_the_rate_is_the_best_of_the_last_seconds():
    meter = RateMeter()
    rates = [meter.add(t / 10, t * 10_000_000) for t in range(21)]  # 100 MB/s
    assert rates[-1] == pytest.approx(100e6, rel=0.01)
    sent = 20 * 10_000_000
    slow = [meter.add(2 + t / 10, sent + t * 100_000) for t in range(1, 30)]  # an almost idle guest: 1 MB/s
    assert slow[0] >= 90e6 and slow[-1] >= 90e6, "a round of few pages says little about the link"
    assert meter.add(9.0, sent + 10_000_000) < 50e6, "but a link that stays slow is believed in the end"


def test_a_first_reading_knows_no_rate():
    assert RateMeter().add(0.0, 5 * PAGE_BYTES) == 0.0


@pytest.mark.parametrize(
    ("option", "compressions", "wanted"),
    [
        ("tcp", {"none", "zstd"}, {"multifd-channels": 2, "multifd-compression": "none"}),
        (
            "compression",
            {"none", "zstd"},
            {"multifd-channels": 2, "multifd-compression": "zstd", "multifd-zstd-level": 1},
        ),
        (
            "compression",
            {"none", "zlib"},
            {"multifd-channels": 2, "multifd-compression": "zlib", "multifd-zlib-level": 1},
        ),
    ],
)
def test_parameters(option: str, compressions: set[str], wanted: dict[str, object]):
    offer = replace(FULL, compressions=frozenset(compressions))
    assert multifd_parameters(agree(offer, offer, replace(AUTO, option=option))) == wanted


def test_the_group_is_the_published_one():
    prime = ffdhe2048_prime()
    text = f"{prime:X}"
    # RFC 7919, appendix A.1: first and last words of the hexadecimal prime
    assert text.startswith("FFFFFFFFFFFFFFFFADF85458A2BB4A9A") and text.endswith("886B423861285C97FFFFFFFFFFFFFFFF")
    assert prime.bit_length() == 2048
    assert pow(2, prime - 1, prime) == 1 and pow(2, (prime - 1) // 2 - 1, (prime - 1) // 2) == 1


def test_the_group_is_well_formed_pem():
    lines = dh_params_pem().decode().splitlines()
    assert (lines[0], lines[-1]) == ("-----BEGIN DH PARAMETERS-----", "-----END DH PARAMETERS-----")
    der = base64.b64decode("".join(lines[1:-1]))
    assert der[:4] == b"\x30\x82" + (len(der) - 4).to_bytes(2, "big")
    assert der.endswith(b"\x02\x01\x02")
