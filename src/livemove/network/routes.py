"""Which address of ours the kernel sends from."""

from __future__ import annotations

import socket


def source_address_towards(address: str) -> str:
    """The local address that the kernel would use for `address`; empty when there is no route. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])
