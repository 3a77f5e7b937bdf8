"""Taps: their names, and real ones on a bridge in a network namespace of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.network.taps import tap_name

UUID = "11111111-2222-4333-8444-555555555555"


@given(st.text(max_size=80), st.integers(0, 7))
def test_names_are_short(vm_name: str, index: int) -> None:
    name = tap_name(vm_name, UUID, index)
    assert len(name) <= 15 and name.startswith("lm") and name.isalnum()
    assert name == tap_name(vm_name, UUID, index) != tap_name(vm_name, UUID, index + 1)


def test_names_differ_between_vms() -> None:
    names = {tap_name(name, uuid, 0) for name in ("web1", "web2") for uuid in (UUID, UUID.replace("1", "2"))}
    assert len(names) == 4


def in_a_namespace(code: str) -> Any:
    """What the Python `code` puts into `result`, run in a network namespace that ends with it."""
    program = f"""
import json, subprocess
from livemove.base.errors import NetworkMissing
from livemove.network.taps import make_tap, remove_tap
def ip(*words): return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
def links(): return {{link["ifname"]: link for link in json.loads(ip("-j", "link"))}}
def refusal(name, bridge):
    try: make_tap(name, bridge)
    except NetworkMissing as error: return error.message
{code}
print(json.dumps(result))
"""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.qemu
def test_a_tap_on_a_bridge() -> None:
    made, owner, again, removed = in_a_namespace(
        """
ip("link", "add", "br0", "mtu", "9000", "type", "bridge")
ip("link", "set", "br0", "up")
make_tap("lm0", "br0", owner_uid=65534)
made = links()["lm0"]
owner = json.loads(ip("-j", "-d", "link", "show", "lm0"))[0]["linkinfo"]["info_data"]
make_tap("lm0", "br0")
again = links()["lm0"]["master"]
remove_tap("lm0")
remove_tap("lm0")
result = [made, owner, again, sorted(links())]
"""
    )
    assert (made["master"], made["mtu"], "UP" in made["flags"]) == ("br0", 9000, True)
    assert (owner["type"], owner["user"], owner["vnet_hdr"], owner["persist"]) == ("tap", "nobody", True, True)
    assert again == "br0"
    assert removed == ["br0", "lo"]


@pytest.mark.qemu
def test_what_is_missing_is_named_and_nothing_is_left() -> None:
    no_bridge, not_a_bridge, long_name, left = in_a_namespace(
        """
ip("link", "add", "dummy", "type", "veth", "peer", "name", "other")
result = [refusal("lm0", "br0"), refusal("lm0", "dummy"), refusal("x" * 16, "dummy"), sorted(links())]
"""
    )
    assert no_bridge == "There is no bridge 'br0' on this host."
    assert not_a_bridge == "The tap 'lm0' cannot join 'dummy': 'dummy' is no bridge."
    assert "cannot be made" in long_name
    assert left == ["dummy", "lo", "other"]


@pytest.mark.qemu
def test_a_tap_in_use_is_left_alone() -> None:
    made, removed, left = in_a_namespace(
        """
import fcntl, os, struct
ip("link", "add", "br0", "type", "bridge")
make_tap("lm0", "br0")
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454ca, struct.pack("16sH14x", b"lm0", 0x5002))
made = refusal("lm0", "br0")
try: remove_tap("lm0")
except NetworkMissing as error: removed = error.message
result = [made, removed, sorted(links())]
"""
    )
    assert "it is in use" in made and "it is in use" in removed
    assert left == ["br0", "lm0", "lo"]
