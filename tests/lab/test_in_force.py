from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from livemove.lab import faults, in_force
from livemove.lab.in_force import Fault, Seen
from livemove.lab.lab import Lab
from livemove.lab.topology import LabSpec, parse_lab

SPEC = parse_lab(hosts="A,B", links=["1Gbit", "1Gbit,switched,mtu=9000"])


def as_defined(spec: LabSpec) -> dict[str, Seen]:
    ends = [end for network in spec.networks for end in network.ends]
    shaped = {
        place: network.spec.rate_bytes_per_s
        for network in spec.networks
        for cable in network.cables
        for place in cable.shaped
    }
    return {
        member: Seen(
            frozenset(end.interface for end in ends if end.member == member),
            {end.interface: end.mtu for end in ends if end.member == member},
            {name: rate for (where, name), rate in shaped.items() if where == member and rate is not None},
            {},
        )
        for member in spec.members
    }


def changed(member: str, **values: Any) -> dict[str, Seen]:
    seen = as_defined(SPEC)
    now = seen[member]
    mappings: Mapping[str, Any] = {"mtus": now.mtus, "rates_bytes_per_s": now.rates_bytes_per_s, "said": now.said}
    new = {name: {**mapping, **values.get(name, {})} for name, mapping in mappings.items()}
    return seen | {member: Seen(now.up - values.get("down", set()), new["mtus"], new["rates_bytes_per_s"], new["said"])}


def test_a_lab_as_it_was_defined_has_no_faults() -> None:
    assert in_force.find(SPEC, as_defined(SPEC)) == []


@pytest.mark.parametrize(
    ("seen", "faults"),
    [
        (changed("B", down={"link0-B"}), [Fault("link0", ("A", "B"), "cut off")]),
        (changed("switch", down={"s1-B"}), [Fault("link1", ("B",), "cut off")]),
        (changed("switch", down={"sgst-client"}), [Fault("guests", ("client",), "cut off")]),
        # what arrives at B is what A sends
        (changed("B", said={"hole_link0_B": "gone"}), [Fault("link0", ("A",), "gone")]),
        (changed("A", said={"loss_link0_A": "few"}), [Fault("link0", ("B",), "few")]),
        (
            changed("switch", said={"large_s1_A": "big", "loss_s1_A": "few", "other_s1_A": "?"}),
            [Fault("link1", ("A",), "few"), Fault("link1", ("A",), "big")],
        ),
        (changed("A", rates_bytes_per_s={"link0-A": 31_250_000}), [Fault("link0", ("A", "B"), "rate 250 Mbit/s")]),
        (changed("switch", rates_bytes_per_s={"u1-B": None}), [Fault("link1", ("B",), "unshaped")]),
        (changed("A", mtus={"link1-A": 1500}), [Fault("link1", ("A",), "MTU 1500 B")]),
    ],
)
def test_what_differs_is_a_fault_of_the_hosts_whose_it_is(seen: dict[str, Seen], faults: list[Fault]) -> None:
    assert in_force.find(SPEC, seen) == faults


def test_only_our_rules_and_only_tbf_at_the_root_count() -> None:
    seen = in_force.read(
        [{"ifname": "a", "flags": ["UP"], "mtu": 1500}, {"ifname": "b", "flags": [], "mtu": 9000}],
        [
            {"kind": "tbf", "dev": "a", "root": True, "options": {"rate": 5}},
            {"kind": "tbf", "dev": "b", "parent": "1:1", "options": {"rate": 6}},
            {"kind": "htb", "dev": "b", "root": True, "options": {}},
        ],
        [
            {"metainfo": {}},
            {"chain": {"table": in_force.TABLE, "name": "loss_a"}},
            {"rule": {"table": in_force.TABLE, "chain": "loss_a", "comment": "few"}},
            {"rule": {"table": "another", "chain": "hole_a", "comment": "none of ours"}},
        ],
    )
    assert seen == Seen(frozenset("a"), {"a": 1500, "b": 9000}, {"a": 5}, {"loss_a": "few"})


@pytest.mark.qemu
@pytest.mark.parametrize("link", ["1Gbit", "1Gbit,switched", "unshaped", "1Gbit,switched,mtu=9000,switch-mtu=1500"])
async def test_everything_that_was_broken_is_found_and_restored(lab_name: str, link: str) -> None:
    async with Lab(parse_lab(lab_name, links=["1Gbit", link])) as lab:
        assert await in_force.in_force(lab) == []
        await faults.lose(lab, 1, 2)
        await faults.drop_large(lab, 1, 1400, sender="A")
        await faults.set_rate(lab, 1, 31_250_000)
        await faults.set_mtu(lab, 1, "A", 1300)
        await faults.cut(lab, 1)
        found = await in_force.in_force(lab)
        assert {fault.network for fault in found} == {"link1"}
        assert {fault.what for fault in found} == {
            "cut off",
            "2 % of what it sends is lost",
            "packets over 1400 B that it sends vanish",
            "rate 250 Mbit/s",
            "MTU 1300 B",
        }
        await faults.restore(lab, 1, host="B")
        assert all("A" in fault.hosts for fault in await in_force.in_force(lab))
        await faults.restore(lab, 1)
        assert await in_force.in_force(lab) == []
        await faults.set_rate(lab, 0, None)
        assert {fault.what for fault in await in_force.in_force(lab)} == {"unshaped"}
