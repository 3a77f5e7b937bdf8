"""The port that is proved before QEMU listens on it, and the packet filter."""

from __future__ import annotations

import asyncio
import contextlib
import shutil

import pytest

from livemove.base.errors import MissingPrerequisite, PortClosed
from livemove.migration.receiving import PortProbe, admit_only, filter_name, filter_rules, probe_port, remove_filter

PORTS = range(50700, 50710)


async def test_the_source_gets_its_nonce_back_and_the_port_is_free_afterwards():
    probe = await PortProbe.open("127.0.0.1", PORTS, set())
    assert 0 < await probe_port("127.0.0.1", probe.port, probe.nonce) < 5
    await probe.close()
    await probe.close()
    again = await PortProbe.open("127.0.0.1", [probe.port], set())
    await again.close()


async def test_ports_in_use_and_ports_promised_are_passed_over():
    first = await PortProbe.open("127.0.0.1", PORTS, set())
    second = await PortProbe.open("127.0.0.1", PORTS, {PORTS[1]})
    assert (first.port, second.port) == (PORTS[0], PORTS[2])
    with pytest.raises(PortClosed, match="in use"):
        await PortProbe.open("127.0.0.1", [PORTS[0]], set())
    await first.close()
    await second.close()


async def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(PortClosed, match=r"cannot listen on 203\.0\.113\.1"):
        await PortProbe.open("203.0.113.1", PORTS, set())


async def test_rubbish_and_silence_get_no_answer_and_hold_nothing_up():
    probe = await PortProbe.open("127.0.0.1", PORTS, set())
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


def test_the_filter_admits_one_address_and_no_other_family():
    rules = filter_rules("a-b", "10.0.0.1", 50000)
    assert filter_name("a-b") == "livemove_a_b"
    assert "tcp dport 50000 ip saddr != 10.0.0.1 drop" in rules and "nfproto ipv6 drop" in rules
    assert "ip6 saddr != fe80::1" in filter_rules("a-b", "fe80::1", 50000)


async def tables() -> str:
    done = await asyncio.create_subprocess_exec("nft", "list", "tables", stdout=asyncio.subprocess.PIPE)
    return (await done.communicate())[0].decode()


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("nft") is None, reason="make setup installs nftables")
async def test_the_filter_is_put_in_place_and_taken_away():
    await admit_only("test-filter", "127.0.0.9", 50799)
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
        await admit_only("x-y", "10.0.0.1", 50000)
