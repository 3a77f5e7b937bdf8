"""What both QEMUs can do, and what a journey therefore uses (N19).

Agreement is a pure function of two offers and a wish. Every feature gets a row that says what each side has, whether it
is used, and why not: nothing is dropped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass

from livemove.base.errors import MigrationBlocked, QemuTooOld

OLDEST_QEMU = (8, 2, 0)  # facts.md: 7.2 loses dirty pages under TCG; late-block-activate with -S is proved from 8.2 on

GBIT_PER_S = 125_000_000

#: Features a journey cannot do without, and what breaks when they are missing.
_REQUIRED = {
    "return-path": "the source could not know that the destination has loaded everything",
    "late-block-activate": "the destination would take the disks before the hand-over",
    "events": "the agent would not hear of the switch-over in time",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """What one host's QEMU can do.

    :param capabilities: names from ``query-migrate-capabilities``.
    :param parameters: names from ``query-migrate-parameters``.
    :param compressions: members of QEMU's MultiFDCompression enum.
    :param idle_cores: cores without work at the moment.
    :param link_bytes_per_s: speed of the NICs that the journey uses; 0 when unknown.
    :param no_mptcp: why this host cannot use MPTCP, naming the setting; empty: it can.
    """

    version: tuple[int, int, int]
    accelerator: str
    capabilities: frozenset[str]
    parameters: frozenset[str]
    compressions: frozenset[str]
    tls_psk: bool
    cores: int
    idle_cores: float
    link_bytes_per_s: int
    no_mptcp: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller and the settings ask for; 0 channels means: choose.

    :param multipath: several networks at once, if both hosts can.
    """

    option: str
    channels: int
    compression_level: int
    tls: bool
    may_throttle: bool
    multipath: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of negotiated features."""

    feature: str
    source: bool
    destination: bool
    used: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the journey uses, with the table that explains it."""

    option: str
    option_reason: str
    channels: int
    compression: str
    compression_level: int
    tls: bool
    throttle: bool
    capabilities: tuple[str, ...]
    rows: tuple[Row, ...]
    mptcp: bool = False

    @property
    def dropped(self) -> tuple[Row, ...]:
        """What was wanted, or is there on one side, and is not used."""
        return tuple(row for row in self.rows if not row.used)


def agree(source: Offer, destination: Offer, wish: Wish) -> Agreement:
    """What both can do of what is wished.

    Raises QemuTooOld when a side's version is refused, MigrationBlocked when a side lacks what no journey can do without,
    or what was asked for by name.
    """
    for side, offer in (("source", source), ("destination", destination)):
        if offer.version < OLDEST_QEMU:
            version = ".".join(map(str, offer.version))
            oldest = ".".join(map(str, OLDEST_QEMU))
            raise QemuTooOld(f"The {side}'s QEMU is {version}; livemove needs {oldest} or newer.", where=side)
    rows: list[Row] = []
    capabilities: list[str] = []

    def consider(name: str, wanted: bool, why: str) -> bool:
        has_source, has_destination = name in source.capabilities, name in destination.capabilities
        used = wanted and has_source and has_destination
        if used:
            capabilities.append(name)
            reason = why
        elif not wanted:
            reason = f"not used: {why}"
        else:
            missing = (
                "both sides" if not (has_source or has_destination) else "source" if not has_source else "destination"
            )
            reason = f"negotiated away: missing on {missing}"
        rows.append(Row(name, has_source, has_destination, used, reason))
        return used

    for name, broken in _REQUIRED.items():
        if not consider(name, True, "always"):
            raise MigrationBlocked(f"QEMU's '{name}' is missing on one side; without it {broken}.")
    multifd = consider("multifd", True, "pages travel on several connections")
    throttle = consider(
        "auto-converge", wish.may_throttle, "the guest may be slowed down" if wish.may_throttle else "no --throttle"
    )
    consider("x-ignore-shared", False, "all memory is copied")

    option, option_reason = _choose_option(source, destination, wish, multifd)
    compression = "none"
    if option == "compression":
        compression = next((m for m in ("zstd", "zlib") if m in source.compressions & destination.compressions), "none")
        if not multifd or compression == "none":
            raise MigrationBlocked(
                "Compression was asked for, but the two QEMUs have no common method (zstd or zlib with multifd).",
                remedy="Use --option tcp, or a QEMU built with zstd on both hosts.",
            )
    for method in ("zstd", "zlib"):
        used = method == compression
        why = (
            "chosen"
            if used
            else "negotiated away: the other method is used"
            if compression != "none"
            else f"not used: {option_reason}"
        )
        rows.append(
            Row(f"multifd-{method}", method in source.compressions, method in destination.compressions, used, why)
        )

    tls = wish.tls and source.tls_psk and destination.tls_psk
    if wish.tls and not tls:
        side = "source" if not source.tls_psk else "destination"
        raise MigrationBlocked(
            f"The {side}'s QEMU has no TLS with pre-shared keys, and the network is not marked as trusted.",
            remedy="Install a QEMU built with GnuTLS, or name the network in 'trusted_networks' on both hosts.",
        )
    why_tls = "a key made for this journey" if tls else "not used: the network is trusted on both hosts"
    rows.append(Row("tls-psk", source.tls_psk, destination.tls_psk, tls, why_tls))
    switchover = "avail-switchover-bandwidth" in source.parameters
    rows.append(
        Row(
            "avail-switchover-bandwidth",
            switchover,
            True,
            switchover,
            "set from the measured rate" if switchover else "negotiated away: missing on source",
        )
    )
    mptcp = wish.multipath and not source.no_mptcp and not destination.no_mptcp
    missing = "; ".join(reason for reason in (source.no_mptcp, destination.no_mptcp) if reason)
    why_mptcp = (
        "several networks, and others when one dies"
        if mptcp
        else f"negotiated away: {missing}"
        if wish.multipath
        else "not used: one network was asked for"
    )
    rows.append(Row("mptcp", not source.no_mptcp, not destination.no_mptcp, mptcp, why_mptcp))
    channels = choose_channels(source, destination, wish.channels) if multifd else 1
    return Agreement(
        option,
        option_reason,
        channels,
        compression,
        wish.compression_level,
        tls,
        throttle,
        tuple(capabilities),
        tuple(rows),
        mptcp,
    )


def _choose_option(source: Offer, destination: Offer, wish: Wish, multifd: bool) -> tuple[str, str]:
    """Compression below 10 Gbit/s with idle CPU on both hosts, none otherwise (#2, #8, #103)."""
    if wish.option != "auto":
        return wish.option, "as asked"
    if not multifd or not source.compressions & destination.compressions & {"zstd", "zlib"}:
        return "tcp", "auto: the two QEMUs have no common compression"
    link = link_speed(source, destination)
    if not link:
        return "tcp", "auto: the link's speed is unknown"
    if link >= 10 * GBIT_PER_S:
        return "tcp", f"auto: the link carries {link / GBIT_PER_S:.0f} Gbit/s, compression pays below 10"
    for side, offer in (("source", source), ("destination", destination)):
        if offer.idle_cores < 1:
            return "tcp", f"auto: the {side} has {offer.idle_cores:.1f} idle cores, compression needs 1"
    return "compression", f"auto: the link carries {link / GBIT_PER_S:.1f} Gbit/s and both hosts have idle CPU"


def link_speed(source: Offer, destination: Offer) -> int:
    """Bytes per second of the slower NIC; 0 when neither is known."""
    known = [offer.link_bytes_per_s for offer in (source, destination) if offer.link_bytes_per_s > 0]
    return min(known, default=0)


def choose_channels(source: Offer, destination: Offer, asked: int) -> int:
    """Connections for the copy: as asked, else from link speed, bounded by the cores of the smaller host.

    The optimum is interior: 8 connections saturate 100 Gbit/s and 16 are slower (Cloud Hypervisor's PR 7669; the QEMU
    guides say 8 to 16), 2 fill 10 Gbit/s (facts.md).
    """
    if asked:
        return asked
    link = link_speed(source, destination)
    wanted = 2 if link <= 10 * GBIT_PER_S else 4 if link <= 40 * GBIT_PER_S else 8
    return min(wanted, max(2, min(source.cores, destination.cores)))
