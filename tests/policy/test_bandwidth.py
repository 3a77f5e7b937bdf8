"""Limits: which make sense, and how they are divided over NICs and journeys."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from livemove.base.errors import BadSetting
from livemove.policy.bandwidth import (
    LEAST_MIGRATION,
    MAX_SELECTORS,
    PRESETS,
    Category,
    Claim,
    Limit,
    Nic,
    Selectors,
    check_limit,
    check_limits,
    kept_on,
    living_cap,
    minimum_of,
    parse_category,
    share_out,
    split_cap,
)

GBIT = 125_000_000
LIVE, VMS, REST = Category.LIVE_MIGRATION, Category.VIRTUAL_MACHINE, Category.DEFAULT
NFS = Selectors(presets=("nfs",))
TWO = [Nic("eth1", 10 * GBIT), Nic("eth2", 10 * GBIT)]
RATES = st.floats(1e3, 1e11)


def limits(*of: Limit) -> dict[Category, Limit]:
    return {limit.category: limit for limit in of}


def test_categories_have_the_names_of_hyper_v_in_any_case() -> None:
    assert [parse_category(name) for name in ("livemigration", "VirtualMachine", "DEFAULT")] == [LIVE, VMS, REST]
    with pytest.raises(BadSetting, match="'Storage'") as caught:
        parse_category("Storage")
    assert "LiveMigration, VirtualMachine, Default" in caught.value.remedy


@pytest.mark.parametrize(
    "limit",
    [
        Limit(LIVE, max_bytes_per_s=GBIT),
        Limit(REST, min_bytes_per_s=GBIT),
        Limit(REST, min_share=1.0, buffer=0),
        Limit(REST, max_bytes_per_s=GBIT, min_bytes_per_s=GBIT),
        Limit(VMS, min_share=0.1, selectors=NFS),
        Limit(VMS, min_share=0.1, selectors=Selectors(ports=("1", "6800-7568"))),
        Limit(VMS, min_share=0.1, selectors=Selectors(addresses=("192.0.2.7", "2001:db8::/32"))),
        Limit(VMS, min_share=0.1, selectors=Selectors(cgroups=("livemove.slice/storage@1.service",))),
    ],
)
def test_limits_that_make_sense(limit: Limit) -> None:
    check_limit(limit)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (Limit(LIVE), "Nothing is said about LiveMigration"),
        (Limit(REST, min_bytes_per_s=GBIT, min_share=0.1), "two minimums"),
        (Limit(LIVE, max_bytes_per_s=1000), "8 kbit/s for LiveMigration is less than"),
        (Limit(REST, min_bytes_per_s=124_999), "less than the smallest rate"),
        (Limit(REST, min_share=1.2), "120%"),
        (Limit(REST, min_share=0.1, buffer=1.5), "buffer of 150%"),
        (Limit(REST, max_bytes_per_s=GBIT, min_bytes_per_s=2 * GBIT), "promised 2 Gbit/s and may have 1 Gbit/s"),
        (Limit(VMS, min_share=0.1), "not said"),
        (Limit(LIVE, max_bytes_per_s=GBIT, selectors=NFS), "takes no selectors"),
        *(
            (Limit(VMS, min_share=0.1, selectors=selectors), said)
            for selectors, said in [
                (Selectors(presets=("smb",)), "no preset 'smb'"),
                (Selectors(ports=("0",)), "'0' is neither a port"),
                (Selectors(ports=("65536",)), "'65536' is neither a port"),
                (Selectors(ports=("9-8",)), "'9-8' is neither a port"),
                (Selectors(ports=("nfs",)), "'nfs' is neither a port"),
                (Selectors(ports=("5 } drop",)), "is neither a port"),
                (Selectors(addresses=("192.0.2.7/24",)), "'192.0.2.7/24' is neither an address"),
                (Selectors(addresses=("store1",)), "'store1' is neither an address"),
                *((Selectors(cgroups=(bad,)), "not a path of a cgroup") for bad in ("/a", "a//b", "a/../b", "..", 'a" drop', "")),
                (Selectors(ports=tuple(map(str, range(1, MAX_SELECTORS + 2)))), f"more than {MAX_SELECTORS}"),
            ]
        ),
    ],
)  # fmt: skip
def test_limits_that_make_none(limit: Limit, said: str) -> None:
    with pytest.raises(BadSetting, match=said.replace("(", r"\(")) as caught:
        check_limit(limit)
    assert caught.value.remedy


def test_presets_and_ports_together_are_each_once() -> None:
    assert Selectors(presets=("iscsi", "nfs"), ports=("2049", "99")).every_port == ("860", "3260", "2049", "99")
    for ports in PRESETS.values():
        check_limit(Limit(VMS, min_share=0.1, selectors=Selectors(ports=ports)))


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ([Limit(REST, min_share=0.6), Limit(VMS, min_share=0.5, selectors=NFS)], "110% of the bandwidth together"),
        ([Limit(REST, min_bytes_per_s=21 * GBIT)], "21 Gbit/s together, and the NICs carry 20 Gbit/s"),
        ([Limit(REST, min_bytes_per_s=11 * GBIT), Limit(VMS, min_share=0.5, selectors=NFS)], "21 Gbit/s together"),
        ([Limit(LIVE, min_bytes_per_s=12 * GBIT), Limit(REST, min_bytes_per_s=9 * GBIT)], "21 Gbit/s together"),
        ([Limit(LIVE)], "Nothing is said"),
    ],
)
def test_minimums_above_what_there_is(of: list[Limit], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        check_limits(limits(*of), TWO)


def test_what_is_odd_is_said() -> None:
    fine = limits(Limit(REST, min_bytes_per_s=20 * GBIT))
    assert check_limits(fine, TWO) == []
    (unknown,) = check_limits(fine, [*TWO, Nic("veth0", 0)])
    assert "veth0" in unknown and "nic_speeds" in unknown
    (no_limit,) = check_limits(limits(Limit(LIVE, max_bytes_per_s=20 * GBIT)), TWO)
    assert "20 Gbit/s is no limit" in no_limit
    (nowhere,) = check_limits(fine, [])
    assert "no NIC" in nowhere


def test_a_minimum_is_a_rate_or_a_part() -> None:
    assert minimum_of(None, GBIT) == 0
    assert minimum_of(Limit(REST, min_bytes_per_s=100, buffer=0.1), GBIT) == 100
    assert minimum_of(Limit(REST, min_share=0.4), GBIT) == pytest.approx(0.4 * GBIT)


def test_a_maximum_follows_the_nics_that_live() -> None:
    """#92: 16 of 2 x 10 Gbit/s; with one NIC dead it must not let migration take all of the other."""
    cap = Limit(LIVE, max_bytes_per_s=16 * GBIT)
    assert living_cap(cap, TWO) == 16 * GBIT
    assert living_cap(cap, [TWO[0], replace(TWO[1], living=False)]) == 8 * GBIT
    assert living_cap(cap, [replace(nic, living=False) for nic in TWO]) == 0
    assert living_cap(cap, [Nic("veth0", 0)]) == 16 * GBIT
    assert living_cap(None, TWO) == living_cap(Limit(LIVE, min_share=0.1), TWO) == math.inf


def test_a_maximum_is_divided_over_the_nics_in_use() -> None:
    """#84: 10 Gbit/s over two NICs is seen as 2 x 5."""
    assert split_cap(10 * GBIT, {"eth1": 10 * GBIT, "eth2": 10 * GBIT}) == {"eth1": 5 * GBIT, "eth2": 5 * GBIT}
    assert split_cap(16 * GBIT, {"eth1": 10 * GBIT}) == {"eth1": 10 * GBIT}
    assert split_cap(math.inf, {"eth1": 10 * GBIT}) == {"eth1": 10 * GBIT}
    assert split_cap(5 * GBIT, {}) == {}


@pytest.mark.parametrize(
    ("fields", "others", "kept"),
    [
        ({"min_bytes_per_s": 40}, {}, (40, 40)),
        ({"min_bytes_per_s": 40}, {"eth1": 40}, (40, 20)),
        ({"min_bytes_per_s": 40}, {"eth1": 30, "eth2": 30}, (20, 20)),
        ({"min_bytes_per_s": 40, "buffer": 0.1}, {"eth1": 40}, (44, 22)),
        ({"min_bytes_per_s": 200}, {}, (98, 98)),
        ({"min_share": 0.4}, {"eth1": 100}, (40, 40)),
        ({"min_share": 0.95, "buffer": 0.5}, {}, (98, 98)),
    ],
)
def test_a_minimum_is_kept_where_its_traffic_is(
    fields: dict[str, Any], others: dict[str, float], kept: tuple[float, float]
) -> None:
    limit = Limit(REST, **{"buffer": 0, **fields})
    found = kept_on(limit, {"eth1": 100.0, "eth2": 100.0}, others)
    assert (found["eth1"], found["eth2"]) == pytest.approx(kept)


def test_nothing_promised_or_no_nic_is_nothing_kept() -> None:
    assert kept_on(None, {"eth1": 10.0}, {}) == {"eth1": 0}
    assert kept_on(Limit(REST, min_bytes_per_s=1), {}, {"eth1": 1}) == {}


@given(st.integers(0, 10**11), st.dictionaries(st.sampled_from("abcd"), RATES, min_size=1), st.data())
def test_every_nic_keeps_its_part_and_none_more_than_it_has(
    minimum: int, capacities: dict[str, float], data: st.DataObject
) -> None:
    others = {name: data.draw(st.floats(0, capacity)) for name, capacity in capacities.items()}
    kept = kept_on(Limit(REST, min_bytes_per_s=minimum), capacities, others)
    whole = sum(capacities.values())
    for name, capacity in capacities.items():
        most = capacity * (1 - LEAST_MIGRATION)
        assert min(most, minimum * capacity / whole) * (1 - 1e-9) <= kept[name] <= most


@pytest.mark.parametrize(
    ("claims", "shares"),
    [
        ({}, {}),
        ({"a": Claim(1)}, {"a": 100}),
        ({"a": Claim(1), "b": Claim(3)}, {"a": 25, "b": 75}),
        # b uses a tenth of what it has, so a gets what b leaves above a quarter of its part
        ({"a": Claim(1), "b": Claim(1, 5, 50)}, {"a": 87.5, "b": 12.5}),
        # b uses 14 of 50 and is left room to grow
        ({"a": Claim(1, 50, 50), "b": Claim(1, 14, 50)}, {"a": 80, "b": 20}),
        ({"a": Claim(1, 36, 50), "b": Claim(1, 50, 50)}, {"a": 50, "b": 50}),
        # nobody wants it: everybody may
        ({"a": Claim(1, 1, 50), "b": Claim(1, 1, 50)}, {"a": 50, "b": 50}),
        ({"a": Claim(1, most_bytes_per_s=10), "b": Claim(1)}, {"a": 10, "b": 90}),
        ({"a": Claim(1, most_bytes_per_s=10), "b": Claim(1, most_bytes_per_s=20)}, {"a": 45, "b": 55}),
    ],
)
def test_journeys_share_by_weight_and_by_what_they_can_use(claims: dict[str, Claim], shares: dict[str, float]) -> None:
    assert share_out(100, claims) == pytest.approx(shares)


CLAIMS = st.builds(
    Claim, st.floats(0.1, 10), st.floats(0, 1e10), st.one_of(st.none(), st.floats(0, 1e10)), st.one_of(st.just(math.inf), RATES)
)  # fmt: skip


@given(st.floats(0, 1e11), st.dictionaries(st.text("abcdef", min_size=1, max_size=2), CLAIMS, min_size=1))
@example(0.0, {"a": Claim(1, 0, 0)})
def test_shares_are_the_whole_and_nobody_is_left_without(total: float, claims: dict[str, Claim]) -> None:
    shares = share_out(total, claims)
    assert shares.keys() == claims.keys()
    assert sum(shares.values()) == pytest.approx(total, abs=1e-3)
    whole = sum(claim.weight for claim in claims.values())
    for name, claim in claims.items():
        least = min(claim.most_bytes_per_s, 0.25 * total * claim.weight / whole)
        assert shares[name] >= least * (1 - 1e-6) - 1e-6
