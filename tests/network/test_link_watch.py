"""Changes of links, as a namespace's kernel tells them."""

from __future__ import annotations

import pytest

from livemove.network.link_watch import changes_between
from livemove.policy.paths import LinkFacts

from .in_namespace import in_a_namespace

_WATCH = """
import time
from livemove.network import link_watch
from livemove.network.link_watch import LinkWatch
for number in (1, 2):
    ip("link", "add", f"eth{number}", "type", "veth", "peer", "name", f"far{number}")
    ip("link", "set", f"eth{number}", "up")
    ip("link", "set", f"far{number}", "up")
    ip("addr", "add", f"10.{number}.0.1/24", "dev", f"eth{number}")
told = []
def words(change):
    return [change.name, change.came_up, change.went_down, list(change.added), list(change.removed),
            change.after.mtu if change.after else None]
async def until(count):
    for _ in range(500):
        if len(told) >= count: return
        await asyncio.sleep(0.01)
    raise SystemExit(f"only {told}")
"""


@pytest.mark.qemu
def test_links_and_addresses_that_come_and_go() -> None:
    told, links, left = in_a_namespace(
        _WATCH
        + """
async def main():
    watch = await LinkWatch.open({}, lambda change: told.append(words(change)))
    for step in ("link set far1 down", "link set far1 up", "addr add 10.1.0.7/24 dev eth1", "addr del 10.1.0.7/24 dev eth1",
                 "link set eth2 mtu 9000", "link del eth1"):
        count = len(told)
        await asyncio.to_thread(ip, *step.split())
        await until(count + 1)
    links = [link.name for link in watch.links]
    await watch.close()
    await watch.close()
    await asyncio.to_thread(ip, "addr", "add", "10.2.0.9/24", "dev", "eth2")
    await asyncio.sleep(0.1)
    return links
links = asyncio.run(main())
import os
left = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
result = [told, links, [name for name in left if "socket" in name]]
"""
    )
    assert told == [
        ["eth1", False, True, [], [], 1500],
        ["eth1", True, False, [], [], 1500],
        ["eth1", False, False, ["10.1.0.7/24"], [], 1500],
        ["eth1", False, False, [], ["10.1.0.7/24"], 1500],
        ["eth2", False, False, [], [], 9000],
        ["eth1", False, True, [], ["10.1.0.1/24"], None],
    ]
    assert links == ["eth2"]
    assert left == []


@pytest.mark.qemu
def test_links_without_addresses_cost_nothing_and_lost_signs_change_nothing() -> None:
    quiet, after_flood, names = in_a_namespace(
        _WATCH
        + """
reads = []
real = link_watch.read_links
async def counted(speeds):
    reads.append(1)
    return await real(speeds)
link_watch.read_links = counted
async def main():
    watch = await LinkWatch.open({}, lambda change: told.append(change.name))
    ip("link", "add", "tap0", "type", "veth", "peer", "name", "tap1")
    ip("link", "set", "tap0", "up")
    ip("link", "del", "tap0")
    await asyncio.sleep(0.1)
    quiet = [len(reads), list(told)]
    # more signs than the socket holds, while the loop stands still
    batch = "".join(f"link set eth2 mtu {1000 + n % 400}\\n" for n in range(4000)) + "link set eth2 mtu 1600\\n"
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    await until(1)
    await asyncio.sleep(0.1)
    mtu = {link.name: link.mtu for link in watch.links}["eth2"]
    few = len(reads) < 10
    await watch.close()
    return quiet, mtu, few
quiet, mtu, few = asyncio.run(main())
result = [quiet, [mtu, few], sorted(set(told))]
"""
    )
    assert quiet == [1, []]
    assert after_flood == [1600, True]
    assert names == ["eth2"]


@pytest.mark.qemu
def test_a_listeners_fault_or_a_look_that_fails_does_not_end_the_watch() -> None:
    told = in_a_namespace(
        _WATCH
        + """
from livemove.base.errors import MissingPrerequisite
link_watch._RETRY_S = 0.01
real, failing = link_watch.read_links, []
async def sometimes(speeds):
    if failing:
        raise MissingPrerequisite(failing.pop())
    return await real(speeds)
link_watch.read_links = sometimes
def listen(change):
    told.append(list(change.added))
    if len(told) == 1: raise RuntimeError("the listener's")
async def main():
    watch = await LinkWatch.open({}, listen)
    for number in (7, 8):
        failing.append("not now")
        await asyncio.to_thread(ip, "addr", "add", f"10.1.0.{number}/24", "dev", "eth1")
        await until(number - 6)
    await watch.close()
asyncio.run(main())
result = told
"""
    )
    assert told == [["10.1.0.7/24"], ["10.1.0.8/24"]]


def facts(name: str, *addresses: str, carrier: bool = True) -> LinkFacts:
    return LinkFacts(name, 2, "physical", 0, 1500, carrier, "", 1, addresses)


def test_changes_between_two_looks() -> None:
    one, two = facts("eth1", "10.1.0.1/24"), facts("eth2", "10.2.0.1/24")
    assert list(changes_between((one, two), (one, two))) == []
    (gone, new) = changes_between((one,), (two,))
    assert (gone.name, gone.went_down, gone.removed, gone.after) == ("eth1", True, ("10.1.0.1/24",), None)
    assert (new.name, new.came_up, new.added, new.before) == ("eth2", True, ("10.2.0.1/24",), None)
    (dead,) = changes_between((), (facts("eth3", carrier=False),))
    assert not dead.came_up and not dead.went_down and dead.added == ()
