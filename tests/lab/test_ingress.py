from __future__ import annotations

from livemove.lab import ingress
from livemove.lab.topology import SWITCH, End

PORT = End(SWITCH, "s0-A", bridge="link0")


def test_a_chain_is_put_whole_and_taken_away_whole() -> None:
    assert ingress.put("t", "large", PORT, ingress.FAULT, ingress.larger_than(1500), "larger than 1500 B lost") == (
        "add table netdev t\n"
        'add chain netdev t large_s0_A { type filter hook ingress device "s0-A" priority -500; }\n'
        "flush chain netdev t large_s0_A\n"
        'add rule netdev t large_s0_A meta length > 1500 drop comment "larger than 1500 B lost"\n'
    )
    assert ingress.take_away("t", "large", PORT) == (
        "add table netdev t\n"
        "add chain netdev t large_s0_A\n"
        "flush chain netdev t large_s0_A\n"
        "delete chain netdev t large_s0_A\n"
    )


def test_a_fault_comes_before_what_the_switch_does() -> None:
    assert ingress.FAULT < ingress.SWITCH_MTU < ingress.UPLINK
