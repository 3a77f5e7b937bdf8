"""Marks and hardware classes of a host: applied whole or not at all, kept over a reboot, taken back to what was there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tests.network import fake_dcb

from livemove.agent import qos as qos_module
from livemove.agent import routes_qos
from livemove.agent.app import _livemove_error
from livemove.agent.qos import FILE, Qos
from livemove.agent.tls_server import PEER_KEY
from livemove.api.client_identity import Peer, Role
from livemove.base.errors import BadSetting, LivemoveError, MissingPrerequisite, StateDamaged, StateUnwritable
from livemove.base.settings import HostSettings
from livemove.network import dcb
from livemove.network.dcb import read_dcb
from livemove.policy.paths import LinkFacts
from livemove.policy.qos import Marking, QosWish, TrafficClass

WISH = QosWish(dscp=8, priority=4, classes=(TrafficClass(4, 40), TrafficClass(3, 30, lossless=True)))


def link(name: str, address: str, kind: str = "physical", members: tuple[str, ...] = ()) -> LinkFacts:
    return LinkFacts(name, 2, kind, 10**9, 1500, True, "mlx5_core", 8, (address,), members)


class World:
    """eth1 and the members of bond0 have DCB, eth4 has none, vlan10 is a VLAN; what is run is played by fake_dcb.py."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs = directory / "programs"
        self.programs.mkdir()
        self.state_dir = directory / "state"
        self.links = [
            link("eth1", "10.1.0.1/24"),
            link("bond0", "10.2.0.1/24", "bond", ("eth2", "eth3")),
            link("eth4", "10.4.0.1/24"),
            link("vlan10", "10.5.0.1/24", "vlan"),
        ]
        self.boot()
        monkeypatch.setattr(dcb, "_run", self._run)
        monkeypatch.setattr(qos_module, "read_links", self._read_links)
        self.before = self.nics()

    def boot(self, **changes: Any) -> None:
        """The NICs as they come from the factory, but for `changes` of eth1."""
        nics = {name: {**fake_dcb.FACTORY} for name in ("eth1", "eth2", "eth3")}
        nics["eth1"] |= changes
        fake_dcb.make(self.programs, {**nics, "eth4": {}, "vlan10": {"vlan": {"2": 1}}})

    async def _run(self, *command: str) -> tuple[int, str, str]:
        return fake_dcb.run(self.programs, *command)

    async def _read_links(self, _: object) -> list[LinkFacts]:
        return self.links

    def nics(self) -> Any:
        return json.loads((self.programs / "state.json").read_text())

    def agent(self) -> Qos:
        """As a (new) agent has it."""
        return Qos(lambda: HostSettings(name="A", state_dir=self.state_dir))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


async def test_applied_and_taken_back(world: World) -> None:
    qos = world.agent()
    assert qos.marking == Marking()
    view = await qos.apply(WISH, dry_run=False)
    assert qos.marking == Marking(8, 4, frozenset({"eth1", "bond0"}))
    assert list(view.commands) == fake_dcb.commands(world.programs)
    assert "ip link set dev vlan10 type vlan egress-qos-map 4:4" in view.commands
    for name in ("eth1", "eth2", "eth3"):
        state = await read_dcb(name)
        assert state is not None and not state.willing and state.pauses[3] and state.share[state.class_of[4]] == 40
    assert {nic.name: nic.networks for nic in view.nics} == {
        "eth1": ("10.1.0.0/24",), "eth2": ("10.2.0.0/24",), "eth3": ("10.2.0.0/24",), "eth4": ("10.4.0.0/24",),
        "vlan10": ("10.5.0.0/24",),
    }  # fmt: skip
    assert view.notes == ()

    again = await world.agent().apply(WISH, dry_run=False)
    assert again.commands == (), "the same again changes nothing"

    removed = await world.agent().remove(dry_run=False)
    assert removed.wish is None and world.agent().marking == Marking()
    after = world.nics()
    assert after["vlan10"]["vlan"] == {"2": 1, "4": 0}
    assert {**after, "vlan10": world.before["vlan10"]} == world.before
    assert (await world.agent().remove(dry_run=False)).commands == ()


async def test_another_wish_takes_back_what_is_no_more_asked_for(world: World) -> None:
    qos = world.agent()
    await qos.apply(WISH, dry_run=False)
    await qos.apply(QosWish(classes=(TrafficClass(5, 20),), nics=("eth1",)), dry_run=False)
    assert qos.marking == Marking(hardware=frozenset({"eth1"}))
    assert world.nics()["eth2"] == world.before["eth2"]
    state = await read_dcb("eth1")
    assert state is not None and state.share[state.class_of[5]] == 20 and state.dscp_priority == ((46, 5),)
    await qos.remove(dry_run=False)
    assert world.nics()["eth1"] == world.before["eth1"], "to what was there before the first wish"


async def test_a_dry_run_prints_the_commands_and_does_nothing(world: World) -> None:
    qos = world.agent()
    planned = await qos.apply(WISH, dry_run=True)
    assert world.nics() == world.before and qos.marking == Marking() and not (world.state_dir / FILE).exists()
    assert (await qos.apply(WISH, dry_run=False)).commands == planned.commands
    undo = await qos.remove(dry_run=True)
    assert undo.commands and undo.wish is not None
    assert (await qos.remove(dry_run=False)).commands == undo.commands


async def test_a_nic_that_refuses_leaves_nothing_half_done(world: World) -> None:
    # the last command is eth3's: everything before it has been done by then
    state = world.nics()
    state["eth3"]["refuses"] = "pfc"
    (world.programs / "state.json").write_text(json.dumps(state))
    qos = world.agent()
    with pytest.raises(MissingPrerequisite, match=r"pfc set dev eth3 .* Operation not permitted"):
        await qos.apply(WISH, dry_run=False)
    after = world.nics()
    for name in ("eth1", "eth2"):
        assert after[name] == world.before[name]
    assert after["eth3"]["ets"] == world.before["eth3"]["ets"]
    assert qos.marking == world.agent().marking == Marking()


async def test_what_cannot_be_is_refused_before_anything_is_done(world: World) -> None:
    qos = world.agent()
    for wish, said in (
        (QosWish(), "Nothing is asked for"),
        (QosWish(dscp=8, nics=("eth9",)), "no NIC 'eth9'"),
        (QosWish(classes=(TrafficClass(4, 40),), nics=("eth4",)), "eth4 has no classes in hardware"),
    ):
        with pytest.raises(BadSetting, match=said):
            await qos.apply(wish, dry_run=False)
    assert fake_dcb.commands(world.programs) == [] and not (world.state_dir / FILE).exists()


async def test_without_hardware_marks_are_set_and_the_rest_is_said(world: World) -> None:
    world.links = [link("eth4", "10.4.0.1/24")]
    view = await world.agent().apply(WISH, dry_run=False)
    assert "livemove bandwidth" in view.notes[0]
    assert world.agent().marking == Marking(8, 4)


async def test_after_a_reboot_it_is_set_again(world: World) -> None:
    await world.agent().apply(WISH, dry_run=False)
    set_up = world.nics()
    world.boot()
    assert any("eth1 is not set as was asked for" in note for note in (await world.agent().view()).notes)
    await world.agent().set_again()
    assert world.nics() == set_up
    await world.agent().remove(dry_run=False)
    assert world.nics()["eth1"] == world.before["eth1"]


async def test_after_a_reboot_a_nic_that_cannot_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.agent().set_again()
    await world.agent().apply(WISH, dry_run=False)
    world.boot(refuses="ets")
    await world.agent().set_again()
    assert "cannot be set again" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"wish": {}}', '{"wish": {"dscp": 64}, "dcb": {}, "vlans": {}}']
)
def test_a_record_that_livemove_did_not_write(world: World, text: str) -> None:
    world.state_dir.mkdir()
    (world.state_dir / FILE).write_text(text)
    with pytest.raises(StateDamaged, match=FILE):
        world.agent()


async def test_a_disk_that_cannot_be_written_stops_it_before_the_nics(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    qos = world.agent()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateUnwritable, match="No space left"):
        await qos.apply(WISH, dry_run=False)
    assert world.nics() == world.before and qos.marking == Marking()


async def test_routes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    async def limits_changed() -> None:
        told.append("changed")

    monkeypatch.setattr(routes_qos, "check_rights", lambda: told.append("checked"))
    host = SimpleNamespace(qos=world.agent(), governor=SimpleNamespace(limits_changed=limits_changed))
    app = FastAPI()
    app.add_exception_handler(LivemoveError, _livemove_error)
    app.include_router(routes_qos.make_router(host))  # type: ignore[arg-type]
    peer = Peer("ann", Role.ADMIN, "f" * 64, "1", 2e9)

    async def with_peer(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {PEER_KEY: peer}}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(with_peer), base_url="http://agent") as client:
        planned = await client.put("/qos", json={"dscp": 8}, params={"dry_run": True})
        assert planned.status_code == 200 and planned.json()["wish"] is None and "checked" not in told
        assert (await client.put("/qos", json={"dscp": 8})).json()["wish"]["dscp"] == 8
        assert told[-2:] == ["checked", "changed"]
        assert (await client.get("/qos")).json()["wish"]["dscp"] == 8
        refused = await client.put("/qos", json={"priority": 4, "classes": [{"priority": 3, "share": 40}]})
        assert (refused.status_code, refused.json()["code"]) == (422, "bad-setting")
        assert (await client.delete("/qos")).json()["wish"] is None
