"""The Diffie-Hellman group that the destination's QEMU is given beside the journey's key.

Without a ``dh-params.pem`` QEMU makes a group of its own for every server credential, which took 0.1 to 0.6 s of a held-up
monitor here (10.0). RFC 7919's ffdhe2048 is a published group for exactly this use; the connections
themselves agree on elliptic curves where both GnuTLS can, and then do not touch it.
"""

from __future__ import annotations

import base64
from functools import cache

_GUARD_BITS = 64


def _e_times_power_of_two(bits: int) -> int:
    """floor(2**bits * e), by the series of 1/n! in integers with guard bits."""
    term = total = 1 << (bits + _GUARD_BITS)
    n = 1
    while term:
        term //= n
        total += term
        n += 1
    return total >> _GUARD_BITS


def ffdhe2048_prime() -> int:
    """RFC 7919 A.1: 2^2048 - 2^1984 + (floor(2^1918 * e) + 560316) * 2^64 - 1."""
    return (1 << 2048) - (1 << 1984) + ((_e_times_power_of_two(1918) + 560316) << 64) - 1


@cache
def dh_params_pem() -> bytes:
    """The group in the form that QEMU reads: PKCS#3's DHParameter, SEQUENCE { prime INTEGER, base INTEGER }, as PEM."""
    prime = ffdhe2048_prime().to_bytes(257, "big")  # a leading zero byte keeps it positive
    body = _der(0x02, prime) + _der(0x02, b"\x02")
    encoded = base64.b64encode(_der(0x30, body)).decode()
    lines = [encoded[start : start + 64] for start in range(0, len(encoded), 64)]
    return "\n".join(("-----BEGIN DH PARAMETERS-----", *lines, "-----END DH PARAMETERS-----", "")).encode()


def _der(tag: int, content: bytes) -> bytes:
    """One element with a definite length (X.690, 8.1.3)."""
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes(2, "big")
    return bytes((tag, 0x82)) + length + content
