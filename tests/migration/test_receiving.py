"""The port that is proved before QEMU listens on it, and the packet filter."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket

import pytest

from livemove.base.errors import MissingPrerequisite, PeerViolation, PortClosed
from livemove.migration.packet_filter import admit_only, filter_name, filter_rules, remove_filter
from livemove.migration.receiving import PortProbe, probe_port

PORTS = range(50700, 50710)


async def test_the_source_gets_its_nonce_back_and_the_port_is_free_afterwards():
    probe = await PortProbe.open(["127.0.0.1"], PORTS, set())
    assert 0 < await probe_port("127.0.0.1", probe.port, probe.nonce) < 5
    await probe.close()
    await probe.close()
    again = await PortProbe.open(["127.0.0.1"], [probe.port], set())
    await again.close()


async def test_ports_in_use_and_ports_promised_are_passed_over():
    first = await PortProbe.open(["127.0.0.1"], PORTS, set())
    second = await PortProbe.open(["127.0.0.1"], PORTS, {PORTS[1]})
    assert (first.port, second.port) == (PORTS[0], PORTS[2])
    with pytest.raises(PortClosed, match="in use"):
        await PortProbe.open(["127.0.0.1"], [PORTS[0]], set())
    await first.close()
    await second.close()


async def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(PortClosed, match=r"cannot listen on .*203"):
        await PortProbe.open(["127.0.0.1", "203.0.113.1"], PORTS, set())


async def test_rubbish_and_silence_get_no_answer_and_hold_nothing_up():
    probe = await PortProbe.open(["127.0.0.1"], PORTS, set())
    reader, writer = await asyncio.open_connection("127.0.0.1", probe.port)
    writer.write(b"x" * 64)
    assert await reader.read() == b""
    _, idle = await asyncio.open_connection("127.0.0.1", probe.port)
    async with asyncio.timeout(2):
        await probe.close()
    for stream in (writer, idle):
        stream.close()
        with contextlib.suppress(OSError):
            await stream.wait_closed()


async def test_refused_and_answered_by_a_stranger():
    with pytest.raises(PortClosed, match="cannot be reached"):
        await probe_port("127.0.0.1", PORTS[-1], "ab" * 32)

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"y" * 64)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(stranger, "127.0.0.1", PORTS[-2]):
        with pytest.raises(PortClosed, match="Something else"):
            await probe_port("127.0.0.1", PORTS[-2], "ab" * 32)


async def test_one_port_on_several_addresses_tells_who_came_to_which():
    addresses = ["127.0.0.1", "127.0.0.2", "::1"]
    probe = await PortProbe.open(addresses, PORTS, set())
    for address in addresses[:2]:
        await probe_port(address, probe.port, probe.nonce, source="127.0.0.7")
    await probe_port("::1", probe.port, probe.nonce)
    assert probe.sources == {"127.0.0.1": "127.0.0.7", "127.0.0.2": "127.0.0.7", "::1": "::1"}
    await probe.close()


async def test_a_port_that_is_taken_on_one_address_only_is_passed_over():
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.2", PORTS[0]):
        probe = await PortProbe.open(["127.0.0.1", "127.0.0.2"], PORTS, set())
        assert probe.port == PORTS[1]
        await probe.close()


async def test_a_port_of_an_outgoing_connection_is_passed_over_where_all_addresses_are_listened_on():
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.3", PORTS[-1]):
        with socket.socket() as outgoing:
            outgoing.bind(("127.0.0.3", PORTS[0]))
            outgoing.connect(("127.0.0.3", PORTS[-1]))
            for addresses, port in ((["127.0.0.1"], PORTS[0]), (["127.0.0.1", "127.0.0.2"], PORTS[1])):
                probe = await PortProbe.open(addresses, PORTS, set())
                assert probe.port == port
                await probe.close()


def test_the_filter_admits_pairs_of_addresses_and_nothing_else():
    pairs = [("10.0.0.1", "10.0.0.2"), ("10.1.0.1", "10.1.0.2"), ("2001:db8::1", "2001:db8::2")]
    lines = [line.strip() for line in filter_rules("a-b", pairs, 50000).splitlines()]
    assert filter_name("a-b") == "livemove_a_b"
    for protocol in ("tcp", "udp"):
        mine = [line for line in lines if line.startswith(f"{protocol} dport 50000 ")]
        assert mine == [
            f"{protocol} dport 50000 ip saddr . ip daddr {{ 10.0.0.1 . 10.0.0.2, 10.1.0.1 . 10.1.0.2 }} accept",
            f"{protocol} dport 50000 ip6 saddr . ip6 daddr {{ 2001:db8::1 . 2001:db8::2 }} accept",
            f"{protocol} dport 50000 drop",
        ]


@pytest.mark.parametrize("pair", [("10.0.0.1; drop", "10.0.0.2"), ("10.0.0.1", ""), ("10.0.0.1", "2001:db8::2")])
def test_what_is_no_pair_of_addresses_never_reaches_nft(pair: tuple[str, str]):
    with pytest.raises(PeerViolation):
        filter_rules("a-b", [pair], 50000)


async def tables() -> str:
    done = await asyncio.create_subprocess_exec("nft", "list", "tables", stdout=asyncio.subprocess.PIPE)
    return (await done.communicate())[0].decode()


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("nft") is None, reason="make setup installs nftables")
async def test_the_filter_is_put_in_place_and_taken_away():
    await admit_only("test-filter", [("127.0.0.9", "127.0.0.1")], 50799)
    try:
        listed = await tables()
        assert "livemove_test_filter" in listed
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 50799)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.open_connection("127.0.0.1", 50799)
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection("127.0.0.1", 50799, local_addr=("127.0.0.9", 0))
        writer.close()
        await writer.wait_closed()
        server.close()
    finally:
        await remove_filter("test-filter")
        await remove_filter("test-filter")
    assert "livemove_test_filter" not in await tables()


async def test_without_nft_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingPrerequisite, match="nft"):
        await admit_only("x-y", [("10.0.0.1", "10.0.0.2")], 50000)
