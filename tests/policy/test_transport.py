"""What two QEMUs agree on, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from livemove.base.errors import MigrationBlocked, QemuTooOld
from livemove.policy.transport import GBIT_PER_S, Agreement, Offer, Wish, agree, choose_channels, link_speed

FULL = Offer(
    version=(10, 0, 2), accelerator="kvm",
    capabilities=frozenset({"return-path", "late-block-activate", "events", "multifd", "auto-converge", "x-ignore-shared"}),
    parameters=frozenset({"avail-switchover-bandwidth"}), compressions=frozenset({"none", "zlib", "zstd"}), tls_psk=True,
    cores=16, idle_cores=12.0, link_bytes_per_s=GBIT_PER_S,
)  # fmt: skip
AUTO = Wish("auto", 0, 1, True, False)


def row(agreement: Agreement, feature: str):
    return next(row for row in agreement.rows if row.feature == feature)


def test_two_full_hosts_on_a_slow_link_compress():
    agreed = agree(FULL, FULL, AUTO)
    assert (agreed.option, agreed.compression, agreed.channels, agreed.tls) == ("compression", "zstd", 2, True)
    assert {"return-path", "late-block-activate", "events", "multifd"} <= set(agreed.capabilities)
    assert "1.0 Gbit/s" in agreed.option_reason


@pytest.mark.parametrize(
    ("change", "side", "says"),
    [
        ({"link_bytes_per_s": 10 * GBIT_PER_S}, "both", "carries 10 Gbit/s"),
        ({"link_bytes_per_s": 0}, "both", "speed is unknown"),
        ({"idle_cores": 0.5}, "source", "the source has 0.5 idle cores"),
        ({"idle_cores": 0.2}, "destination", "the destination has 0.2 idle cores"),
        ({"compressions": frozenset({"none"})}, "source", "no common compression"),
    ],
)
def test_auto_does_without_compression(change: dict[str, object], side: str, says: str):
    changed = replace(FULL, **change)
    source = changed if side in ("both", "source") else FULL
    destination = changed if side in ("both", "destination") else FULL
    agreed = agree(source, destination, AUTO)
    assert (agreed.option, agreed.compression) == ("tcp", "none")
    assert says in agreed.option_reason


def test_a_method_that_only_one_side_has_gives_way_to_the_common_one():
    agreed = agree(FULL, replace(FULL, compressions=frozenset({"none", "zlib"})), AUTO)
    assert agreed.compression == "zlib"
    assert row(agreed, "multifd-zstd").source and not row(agreed, "multifd-zstd").destination
    assert "negotiated away" in row(agreed, "multifd-zstd").reason


def test_compression_by_name_is_never_dropped_in_silence():
    with pytest.raises(MigrationBlocked, match="no common method"):
        agree(FULL, replace(FULL, compressions=frozenset({"none"})), replace(AUTO, option="compression"))


@pytest.mark.parametrize("missing", ["return-path", "late-block-activate", "events"])
@pytest.mark.parametrize("side", ["source", "destination"])
def test_what_no_journey_can_do_without(missing: str, side: str):
    poor = replace(FULL, capabilities=FULL.capabilities - {missing})
    with pytest.raises(MigrationBlocked, match=missing):
        agree(poor if side == "source" else FULL, poor if side == "destination" else FULL, AUTO)


def test_an_old_qemu_is_refused_by_name_and_version():
    with pytest.raises(QemuTooOld, match=r"destination's QEMU is 7\.2\.0"):
        agree(FULL, replace(FULL, version=(7, 2, 0)), AUTO)


def test_tls_is_demanded_unless_the_network_is_trusted():
    with pytest.raises(MigrationBlocked, match="destination's QEMU has no TLS"):
        agree(FULL, replace(FULL, tls_psk=False), AUTO)
    agreed = agree(FULL, replace(FULL, tls_psk=False), replace(AUTO, tls=False))
    assert not agreed.tls
    assert "trusted" in row(agreed, "tls-psk").reason


def test_without_multifd_there_is_one_connection_and_a_row_that_says_so():
    agreed = agree(FULL, replace(FULL, capabilities=FULL.capabilities - {"multifd"}), AUTO)
    assert (agreed.channels, agreed.option) == (1, "tcp")
    assert row(agreed, "multifd").reason == "negotiated away: missing on destination"
    assert row(agreed, "multifd") in agreed.dropped


def test_throttling_is_used_only_when_wished():
    assert "auto-converge" not in agree(FULL, FULL, AUTO).capabilities
    assert "auto-converge" in agree(FULL, FULL, replace(AUTO, may_throttle=True)).capabilities


@pytest.mark.parametrize(
    ("gbit", "cores", "asked", "channels"),
    [
        (1, 16, 0, 2),
        (10, 16, 0, 2),
        (25, 16, 0, 4),
        (100, 16, 0, 8),
        (100, 4, 0, 4),
        (100, 1, 0, 2),
        (1, 16, 7, 7),
        (0, 8, 0, 2),
    ],
)
def test_channels_follow_link_and_cores(gbit: int, cores: int, asked: int, channels: int):
    offer = replace(FULL, link_bytes_per_s=gbit * GBIT_PER_S, cores=cores)
    assert choose_channels(offer, offer, asked) == channels


def test_the_slower_nic_counts():
    assert link_speed(FULL, replace(FULL, link_bytes_per_s=25 * GBIT_PER_S)) == GBIT_PER_S
    assert link_speed(replace(FULL, link_bytes_per_s=0), FULL) == GBIT_PER_S


def test_a_source_without_the_switchover_parameter_goes_on_without():
    agreed = agree(replace(FULL, parameters=frozenset()), FULL, AUTO)
    assert row(agreed, "avail-switchover-bandwidth").reason == "negotiated away: missing on source"
