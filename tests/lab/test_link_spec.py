from __future__ import annotations

import pytest

from livemove.base.errors import BadDefinition, BadQuantity
from livemove.lab.link_spec import LinkSpec, parse_link


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("1Gbit", LinkSpec(125_000_000)),
        ("1Gbit,mtu=9000", LinkSpec(125_000_000, mtu=9000)),
        ("250Mbit,queue=5ms", LinkSpec(31_250_000, queue_bytes=156_250)),
        ("250Mbit, queue=512KiB ,offloads=off", LinkSpec(31_250_000, queue_bytes=524_288, offloads=False)),
        ("100MB/s", LinkSpec(100_000_000)),
        ("unshaped", LinkSpec()),
        ("unshaped,mtu=1400", LinkSpec(mtu=1400)),
        ("unshaped,mtu=1400/9000", LinkSpec(mtu=9000, host_mtus=(1400, 9000), offloads=False)),
        ("unshaped,mtu=1400/9000,offloads=on", LinkSpec(mtu=9000, host_mtus=(1400, 9000))),
        ("1Gbit,switched", LinkSpec(125_000_000, switched=True)),
        (
            "1Gbit,switched,mtu=9000,switch-mtu=1500",
            LinkSpec(125_000_000, switched=True, mtu=9000, switch_mtu=1500, offloads=False),
        ),
        ("unshaped,switched,subnet=0", LinkSpec(switched=True, subnet=0)),
    ],
)
def test_links_are_read_as_people_write_them(text: str, link: LinkSpec) -> None:
    assert parse_link(text) == link


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("", BadDefinition, "begin with a rate"),
        ("mtu=9000", BadDefinition, "begin with a rate"),
        ("1Gbit,speed=3", BadDefinition, "speed=3"),
        ("1Gbit,mtu=9000,mtu=1500", BadDefinition, "mtu=1500"),
        ("1Gbit,mtu", BadDefinition, "mtu"),
        ("1Gbit,offloads=maybe", BadDefinition, "maybe"),
        ("unshaped,queue=5ms", BadDefinition, "no queue"),
        ("1Gbit,queue=", BadQuantity, ""),
        ("1000", BadQuantity, "1000"),
        ("0Gbit", BadQuantity, "0Gbit"),
        ("1bit", BadQuantity, "1bit"),
        ("1Gbit,mtu=1e3", BadQuantity, "1e3"),
        ("1Gbit,mtu=100", BadQuantity, "100"),
        ("1Gbit,mtu=70000", BadQuantity, "70000"),
        ("1Gbit,queue=5", BadQuantity, "5"),
        ("10Gbit,queue=10s", BadQuantity, "4 GiB"),
        ("900Gbit", BadQuantity, "400Gbit"),
        ("1Gbit,switched=yes", BadDefinition, "switched=yes"),
        ("1Gbit,switched,switched", BadDefinition, "'switched'"),
        ("1Gbit,switched,switch-mtu=1500,offloads=on", BadDefinition, "bundles"),
        ("1Gbit,switched,switch-mtu=70000", BadQuantity, "70000"),
        ("1Gbit,mtu=9000/", BadQuantity, "''"),
        ("1Gbit,mtu=9000/100", BadQuantity, "100"),
        ("1Gbit,subnet=link0", BadQuantity, "link0"),
    ],
)
def test_a_link_that_cannot_be_is_refused_with_a_sentence_that_names_it(
    text: str, error: type[BadDefinition | BadQuantity], named: str
) -> None:
    with pytest.raises(error) as caught:
        parse_link(text)
    assert named in caught.value.message
    assert caught.value.message.endswith(".")


def test_burst_and_limit_let_a_gso_packet_through_at_any_rate() -> None:
    slow, fast = parse_link("1Mbit"), parse_link("10Gbit,queue=1ms")
    assert slow.burst_bytes == 65536
    assert slow.limit_bytes == 65536 + 2500
    assert fast.burst_bytes == 2_500_000
    assert fast.limit_bytes == 2_500_000 + 1_250_000


def test_hosts_have_one_mtu_or_one_each() -> None:
    assert [parse_link("unshaped,mtu=9000").mtu_of(place) for place in range(3)] == [9000] * 3
    assert [parse_link("unshaped,mtu=9000/1500").mtu_of(place) for place in range(2)] == [9000, 1500]
