"""Changes of a real kernel's state in a namespace of the test's own, and what is there after they were taken back.

Every test has a host with two NICs, routes of its own in the places that are changed, and MPTCP limits that are not the
default ones, so that "as before" is never the kernel's default by chance.
"""

from __future__ import annotations

import json
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.network.kernel_snapshot import differences, snapshot
from tests.network.wires import Wires, wires

from livemove.base.clock import boot_id
from livemove.base.errors import LivemoveError
from livemove.network.host_changes import HostChanges
from livemove.policy.host_setup import HostRoute, MptcpLimits, ReceiveBuffer, Sysctl

#: Reads a line ``(verb, *arguments)`` and answers with a line: what it returned, or the error.
PROGRAM = """
import asyncio, json, os, sys
from pathlib import Path
from livemove.base import fault_points
from livemove.base.errors import LivemoveError
from livemove.network.host_changes import HostChanges
from livemove.policy.host_setup import HostRoute, MptcpLimits, ReceiveBuffer, Sysctl
directory = Path(sys.argv[1])
fault_points.arm(directory, os.environ)
changes = HostChanges(directory / "host-changes.json")
async def main():
    await asyncio.to_thread(int)  # what a thread needs is imported as long as this process may read it
    if sys.argv[2:]:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    for line in sys.stdin:
        verb, *arguments = eval(line)
        try: answer = await getattr(changes, verb)(*arguments)
        except LivemoveError as error: answer = error.to_json()
        print(json.dumps(answer), flush=True)
asyncio.run(main())
"""

ENABLED = Sysctl("net.mptcp.enabled", "0")
PATH_MANAGER = Sysctl("net/mptcp/pm_type", "1")
ARP = Sysctl("net.ipv4.conf.eth0.arp_ignore", "1")
LIMITS = MptcpLimits(8)
BUFFER = ReceiveBuffer(3000000)
NEW = HostRoute("10.0.0.2", "eth0", "10.0.0.1", mtu=1400, advmss=1360)
OVER_STATIC = HostRoute("10.0.0.9", "eth1", "10.0.0.11")
OVER_GATEWAY = HostRoute("10.9.0.9", "eth1", "10.0.0.11")
OVER_IPV6 = HostRoute("fd00::9", "eth1", "fd00::11", mtu=1400)
ALL = [ENABLED, PATH_MANAGER, ARP, LIMITS, BUFFER, NEW, OVER_STATIC, OVER_GATEWAY, OVER_IPV6]


class Agent:
    """What an agent has of the changes: made by a thread in the host's namespace."""

    def __init__(self, net: Wires, record: Path) -> None:
        self._net = net
        self._changes = HostChanges(record)

    def ask(self, verb: str, *arguments: object) -> Any:
        return self._net.inside("A", lambda: getattr(self._changes, verb)(*arguments)).result(20)


class AgentProcess:
    """The same in a process of its own, which can be killed, or may have no rights."""

    def __init__(self, net: Wires, directory: Path, *argv: str, **environment: str) -> None:
        self._process = net.python("A", PROGRAM, str(directory), *argv, **environment)

    def send(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words!r}\n")
        self._process.stdin.flush()

    def ask(self, *words: object) -> Any:
        """What it returned, or the error."""
        self.send(*words)
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        assert line, self._process.stderr.read()
        return json.loads(line)

    def stop_at(self, directory: Path, point: str, times: int, *words: object) -> None:
        """Ask, and let it stand still where it reaches the point for the n-th time."""
        fault = directory / "fault-point"
        fault.write_text(point)
        self.send(*words)
        for turn in range(times):
            deadline_s = time.monotonic() + 10
            while fault.exists() or not self._stands_still():
                assert time.monotonic() < deadline_s
                time.sleep(0.002)
            if turn < times - 1:
                fault.write_text(point)
                self._process.send_signal(signal.SIGCONT)

    def _stands_still(self) -> bool:
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].startswith("T")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


class Host:
    """Host A, its run directory and the agents that were started there."""

    def __init__(self, net: Wires, directory: Path) -> None:
        self.net = net
        self.directory = directory
        self.record = directory / "host-changes.json"
        self.before = snapshot(net.namespace("A"))

    def agent(self) -> Agent:
        """One that has just started."""
        return Agent(self.net, self.record)

    def changed(self) -> list[str]:
        return differences(self.before, snapshot(self.net.namespace("A")))

    def sysctl(self, name: str) -> str:
        return self.net.run("A", "cat", f"/proc/sys/net/{name}").strip()

    def set_sysctl(self, name: str, value: str) -> None:
        self.net.run("A", "sh", "-c", f"echo {value} > /proc/sys/net/{name}")

    def route(self, peer: str) -> str:
        return " ".join(self.net.run("A", "ip", "-d", "route", "show", "exact", peer).split())


@pytest.fixture
def host() -> Iterator[Host]:
    with wires("A") as net, tempfile.TemporaryDirectory(prefix="lm-changes-") as directory:
        net.ip(
            "A",
            "link add eth0 type veth peer name far0", "link add eth1 type veth peer name far1",
            *(f"link set {nic} addrgenmode none up" for nic in ("eth0", "eth1", "far0", "far1")),
            "addr add 10.0.0.1/24 dev eth0", "addr add 10.0.0.11/24 dev eth1",
            "addr add fd00::1/64 dev eth0 nodad", "addr add fd00::11/64 dev eth1 nodad",
            "route add 10.0.0.9 dev eth0 src 10.0.0.1 proto static mtu 1300 rto_min 20ms initcwnd 30",
            "route add 10.0.0.9 dev eth1 metric 50",
            "route add 10.9.0.0/16 via 10.0.0.254 dev eth1",
            "route add 10.9.0.9 nexthop via 10.0.0.254 dev eth0 weight 3 nexthop via 10.0.0.253 dev eth1",
            "route add fd00::9 dev eth0 metric 1 mtu 1300 expires 1000", "route add fd00::9 dev eth0 metric 7",
            "mptcp limits set subflow 3 add_addr_accepted 1",
        )  # fmt: skip
        # links that come up change state a moment later: routes through them are told with another flag until then
        time.sleep(0.1)
        yield Host(net, Path(directory))


@pytest.mark.qemu
def test_the_changes_are_what_was_wanted_and_then_gone_without_a_trace(host: Host) -> None:
    agent = host.agent()
    assert agent.ask("apply", "j1", ALL) == []
    assert (host.sysctl("mptcp/enabled"), host.sysctl("mptcp/pm_type")) == ("0", "1")
    assert host.sysctl("ipv4/conf/eth0/arp_ignore") == "1"
    assert "subflows 8" in host.net.run("A", "ip", "mptcp", "limits")
    assert host.sysctl("ipv4/tcp_rmem").split()[1] == "3000000"
    assert "add_addr_accepted 1" in host.net.run("A", "ip", "mptcp", "limits")  # never lowered
    assert host.route("10.0.0.2").endswith("src 10.0.0.1 mtu lock 1400 advmss 1360 congctl cubic")
    assert "dev eth1 proto 77" in host.route("10.0.0.9") and "metric 50" in host.route("10.0.0.9")
    assert host.route("10.9.0.9").startswith("unicast 10.9.0.9 via 10.0.0.253 dev eth1 proto 77")
    assert "mtu lock 1400" in host.net.run("A", "ip", "-6", "route", "show", "fd00::9")
    assert stat.S_IMODE(host.record.stat().st_mode) == 0o600
    assert list(agent.ask("held")) == ["j1"]
    assert agent.ask("take_back", "j1") == []
    assert host.changed() == []
    assert list(host.directory.iterdir()) == []
    assert (agent.ask("take_back", "j1"), agent.ask("held")) == ([], {})


@pytest.mark.qemu
def test_what_several_journeys_need_stays_until_the_last_lets_go_and_the_stronger_wish_counts(host: Host) -> None:
    agent = host.agent()
    assert agent.ask("apply", "j1", [ENABLED, LIMITS, NEW, BUFFER]) == []
    smaller = HostRoute("10.0.0.2", "eth0", "10.0.0.1", mtu=1300)
    assert agent.ask("apply", "j2", [ENABLED, MptcpLimits(4), smaller, ReceiveBuffer(4096)]) == []
    assert host.sysctl("ipv4/tcp_rmem").split()[1] == "3000000"
    assert "mtu lock 1300 advmss 1360" in host.route("10.0.0.2")
    elsewhere = HostRoute("10.0.0.2", "eth1", "10.0.0.11")
    notes = agent.ask("apply", "j3", [Sysctl("net.mptcp.enabled", "1"), elsewhere])
    assert notes == [
        "net/mptcp/enabled stays 0, which another journey needs; 1 was wanted.",
        "The route to 10.0.0.2 stays on eth0 with 10.0.0.1, as another journey needs it.",
    ]
    assert agent.ask("take_back", "j2") == []
    assert agent.ask("take_back", "j1") == []
    assert host.sysctl("mptcp/enabled") == "0" and "mtu lock 1300" in host.route("10.0.0.2")
    assert "subflows 3" in host.net.run("A", "ip", "mptcp", "limits")
    assert agent.ask("take_back", "j3") == []
    assert host.changed() == []


@pytest.mark.qemu
def test_a_journey_alone_may_change_its_mind_and_mend_what_a_nic_that_went_down_took_away(host: Host) -> None:
    agent = host.agent()
    agent.ask("apply", "j1", [NEW])
    agent.ask("apply", "j1", [HostRoute("10.0.0.2", "eth0", "10.0.0.1")])
    assert host.route("10.0.0.2").endswith("src 10.0.0.1 congctl cubic")
    host.net.ip("A", "link set eth1 down", "route del 10.0.0.2")
    assert host.route("10.0.0.2") == ""
    agent.ask("apply", "j1", [HostRoute("10.0.0.2", "eth0", "10.0.0.1")])
    assert host.route("10.0.0.2").endswith("congctl cubic")
    agent.ask("take_back", "j1")
    assert host.route("10.0.0.2") == ""


@pytest.mark.qemu
def test_what_somebody_else_changed_is_left_and_said(host: Host) -> None:
    agent = host.agent()
    agent.ask("apply", "j1", [ARP, LIMITS, NEW, OVER_STATIC])
    host.set_sysctl("ipv4/conf/eth0/arp_ignore", "2")
    host.net.ip("A", "mptcp limits set subflow 5", "route replace 10.0.0.2 dev eth1", "route del 10.0.0.9 metric 0")
    theirs = snapshot(host.net.namespace("A"))
    notes = agent.ask("take_back", "j1")
    assert notes == [
        "The route to 10.0.0.9 is gone: its NIC was set down or removed meanwhile.",
        "The route to 10.0.0.2 was changed by somebody else meanwhile and is left as it is.",
        "The setting of MPTCP's limits was changed by somebody else meanwhile and is left as it is.",
        "The kernel parameter net/ipv4/conf/eth0/arp_ignore was changed by somebody else meanwhile and is left as it is.",
    ]
    assert differences(theirs, snapshot(host.net.namespace("A"))) == []
    assert agent.ask("held") == {}


@pytest.mark.qemu
def test_what_somebody_changed_between_two_journeys_is_what_is_put_back(host: Host) -> None:
    agent = host.agent()
    agent.ask("apply", "j1", [ARP])
    host.set_sysctl("ipv4/conf/eth0/arp_ignore", "2")
    agent.ask("apply", "j2", [ARP])
    assert host.sysctl("ipv4/conf/eth0/arp_ignore") == "1"
    agent.ask("take_back", "j1")
    agent.ask("take_back", "j2")
    assert host.sysctl("ipv4/conf/eth0/arp_ignore") == "2"


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("point", "times"),
    [
        ("recorded", 1), ("changed.sysctl", 1), ("changed.sysctl", 3), ("changed.mptcp", 1), ("changed.route", 1),
        ("changed.route", 3), ("put-back", 1), ("put-back", 4), ("put-back", len(ALL)),
    ],
)  # fmt: skip
def test_a_killed_agent_s_next_start_puts_everything_back(host: Host, point: str, times: int) -> None:
    agent = AgentProcess(host.net, host.directory, LIVEMOVE_FAULT_POINTS="1")
    try:
        words: tuple[object, ...] = ("apply", "j1", ALL)
        if point == "put-back":
            assert agent.ask(*words) == []
            words = ("take_back", "j1")
        agent.stop_at(host.directory, f"host-changes.{point}", times, *words)
        assert bool(host.changed()) is ((point, times) not in (("recorded", 1), ("put-back", len(ALL))))
    finally:
        agent.close()
    assert host.record.exists()
    assert host.agent().ask("take_back_all") == []
    assert host.changed() == []
    assert list(host.directory.iterdir()) == []


@pytest.mark.qemu
def test_a_route_of_several_next_hops_is_put_back_also_when_one_of_them_had_no_carrier(host: Host) -> None:
    host.net.ip("A", "link set far0 down")
    while "linkdown" not in host.route("10.9.0.9"):
        time.sleep(0.01)
    agent = host.agent()
    agent.ask("apply", "j1", [OVER_GATEWAY])
    host.net.ip("A", "link set far0 up")
    time.sleep(0.1)
    assert agent.ask("take_back", "j1") == []
    assert [line for line in host.changed() if line.startswith("routes:")] == []


@pytest.mark.qemu
def test_a_journey_that_is_found_again_keeps_its_changes(host: Host) -> None:
    first = host.agent()
    first.ask("apply", "j1", [NEW, ARP])
    first.ask("apply", "j2", [NEW, OVER_STATIC])
    second = host.agent()
    assert second.ask("take_back_all", ["j2"]) == []
    assert host.sysctl("ipv4/conf/eth0/arp_ignore") == "0" and "proto 77" in host.route("10.0.0.2")
    assert list(second.ask("held")) == ["j2"]
    assert second.ask("take_back", "j2") == []
    assert host.changed() == []


@pytest.mark.qemu
def test_without_the_right_there_is_a_clear_sentence_and_nothing_half_applied(host: Host) -> None:
    host.directory.chmod(0o777)
    agent = AgentProcess(host.net, host.directory, "unprivileged")
    try:
        for change in ALL:
            error = agent.ask("apply", "j1", [change])
            assert error["code"] == "missing-prerequisite" and "CAP_NET_ADMIN" in error["remedy"], error
            assert "may not change the host's network" in error["message"]
        assert host.changed() == [] and list(host.directory.iterdir()) == []
        # what somebody with the right has done by hand, as the remedy says, needs none
        wanted = [*ALL, MptcpLimits(4, 2)]
        remedy = agent.ask("apply", "j1", wanted)["remedy"]
        commands = remedy.partition("by hand: ")[2].removesuffix(".").split("; ")
        assert len(commands) == len(ALL)
        host.net.run("A", "sh", "-ec", "\n".join(commands))
        prepared = snapshot(host.net.namespace("A"))
        assert agent.ask("apply", "j1", wanted) == agent.ask("take_back", "j1") == []
        assert differences(prepared, snapshot(host.net.namespace("A"))) == [] and list(host.directory.iterdir()) == []
    finally:
        agent.close()


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("last", "code", "words"),
    [
        (HostRoute("10.0.0.3", "eth7", "10.0.0.1"), "network-missing", "there is no NIC 'eth7'"),
        (HostRoute("10.0.0.3", "eth0", "10.0.0.77"), "network-missing", "Invalid argument"),
        (Sysctl("net.mptcp.nonsense", "1"), "missing-prerequisite", "no parameter 'net.mptcp.nonsense'"),
        (Sysctl("net.mptcp.path_manager", "nonsense"), "missing-prerequisite", "kernel refuses"),
        (MptcpLimits(99), "missing-prerequisite", "kernel refuses"),
    ],
)
def test_what_cannot_be_takes_the_rest_of_the_call_back(host: Host, last: object, code: str, words: str) -> None:
    agent = host.agent()
    # the other journey holds some of it already, and keeps it
    agent.ask("apply", "j1", [NEW, ARP])
    held = snapshot(host.net.namespace("A"))
    wanted = [ENABLED, OVER_STATIC, HostRoute("10.0.0.2", "eth0", "10.0.0.1", mtu=1300), last]
    with pytest.raises(LivemoveError, match=words) as caught:
        agent.ask("apply", "j2", wanted)
    assert caught.value.code == code
    assert differences(held, snapshot(host.net.namespace("A"))) == []
    assert list(agent.ask("held")) == ["j1"]
    agent.ask("take_back", "j1")
    assert host.changed() == []


@pytest.mark.qemu
def test_a_parameter_that_a_kernel_lacks_may_have_an_older_name_or_be_dispensable(host: Host) -> None:
    agent = host.agent()
    older = Sysctl("net.mptcp.nonsense", "x", fallback=PATH_MANAGER)
    assert agent.ask("apply", "j1", [older, Sysctl("net.mptcp.other", "1", optional=True)]) == []
    assert host.sysctl("mptcp/path_manager") == "userspace"
    assert agent.ask("take_back_all") == [] and host.changed() == []


@pytest.mark.qemu
def test_a_record_that_cannot_be_read_is_set_aside_and_told(host: Host) -> None:
    aside = host.directory / "host-changes.json.set-aside"
    head = json.dumps({"boot": boot_id(), "namespace": 0, "held": []})[:-2]
    for content in (
        "", "{", "[]", "4", "[" * 100_000, head + '{"kind": "sysctl"}]}',
        head + '{"kind": "sysctl", "key": "net/../x", "before": 1, "ours": 1, "journeys": []}]}',
        head + '{"kind": "other", "key": "net/x", "before": 1, "ours": 1, "journeys": []}]}',
    ):  # fmt: skip
        host.record.write_text(content)
        agent = host.agent()
        (note,) = agent.ask("take_back_all")
        assert str(aside) in note, content
        assert aside.read_text() == content and not host.record.exists()
        assert agent.ask("apply", "j1", [NEW]) == agent.ask("take_back", "j1") == agent.ask("take_back_all") == []
    assert host.changed() == []


@pytest.mark.qemu
def test_records_of_another_boot_mean_nothing_and_those_of_another_namespace_are_kept(host: Host) -> None:
    agent = host.agent()
    agent.ask("apply", "j1", [ARP])
    record = json.loads(host.record.read_text())
    record["boot"] = "another"
    host.record.write_text(json.dumps(record))
    assert host.agent().ask("take_back_all") == []
    assert host.sysctl("ipv4/conf/eth0/arp_ignore") == "1"  # of this boot after all, which the record does not say
    host.set_sysctl("ipv4/conf/eth0/arp_ignore", "0")
    first = host.agent()
    first.ask("apply", "j1", [ARP])
    elsewhere = json.loads(host.record.read_text())
    elsewhere["namespace"] += 1
    host.record.write_text(json.dumps(elsewhere))
    notes = host.agent().ask("take_back_all")
    assert "another network namespace" in notes[0]
