"""What ``dcb`` and ``ip`` print, and what they are told; NICs with DCB are played by fake_dcb.py, this machine has none."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.base.errors import MissingPrerequisite
from livemove.network import dcb
from livemove.network.dcb import (
    carry_out,
    dcb_commands,
    parse_dcb,
    parse_vlan_marks,
    read_dcb,
    read_vlan_marks,
    vlan_commands,
)
from livemove.policy.qos import DcbState, QosWish, TrafficClass, wanted_state

from . import fake_dcb

# A NIC with four classes, storage lossless on priority 3, as `dcb -j -N ... show` prints it
ETS = (
    '{"willing":false,"ets_cap":4,"cbs":false,"tc_bw":[50,20,30,0,0,0,0,0],"pg_bw":[0,0,0,0,0,0,0,0],'
    '"tc_tsa":["ets","ets","ets","strict","strict","strict","strict","strict"],"prio_tc":[0,0,0,1,2,0,0,3],'
    '"reco_tc_bw":[0,0,0,0,0,0,0,0],"reco_tc_tsa":["strict","strict","strict","strict","strict","strict","strict",'
    '"strict"],"reco_prio_tc":[0,0,0,0,0,0,0,0]}'
)
PFC = (
    '{"pfc_cap":2,"macsec_bypass":false,"delay":0,"prio_pfc":[false,false,false,true,false,false,false,false],'
    '"requests":[0,0,0,7,0,0,0,0],"indications":[0,0,0,0,0,0,0,0]}'
)
APP = '{"ethtype_prio":[[8906,3," "]],"dscp_prio":[[8,4," "],["EF",5," "]],"stream_port_prio":[[3260,3," "]]}'
STATE = DcbState(
    willing=False, classes=4, lossless=2, share=(50, 20, 30, 0, 0, 0, 0, 0),
    served=("ets", "ets", "ets", "strict", "strict", "strict", "strict", "strict"), class_of=(0, 0, 0, 1, 2, 0, 0, 3),
    pauses=(False, False, False, True, False, False, False, False), dscp_priority=((8, 4), (46, 5)),
)  # fmt: skip
WISH = QosWish(dscp=8, priority=4, classes=(TrafficClass(4, 40), TrafficClass(3, 30, lossless=True)))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_dcb.make(
        tmp_path,
        {"eth1": dict(fake_dcb.FACTORY), "eth2": {}, "eth3": {"broken": True}, "vlan10": {"vlan": {"2": 1}}},
    )
    monkeypatch.setenv("FAKE_DCB", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def test_recorded_output() -> None:
    assert parse_dcb(ETS, PFC, APP) == STATE
    assert parse_dcb(ETS, PFC, "").dscp_priority == parse_dcb(ETS, PFC, "{}").dscp_priority == ()
    assert parse_dcb(ETS.replace('"ets_cap":4', '"ets_cap":0'), PFC, APP).classes == 8, "8 is written as 0"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"willing":false', '"willing":"maybe"'), ('"willing":false,', ""), ('"ets_cap":4', '"ets_cap":99'),
        ("[50,20,30,0,0,0,0,0]", "[50,20,30]"), ("[50,20,30,0,0,0,0,0]", "7"), ("[50,", "[true,"), ("[50,", '["a",'),
        ("[50,", "[101,"), ('"prio_tc":[0', '"prio_tc":[8'), ("{", "["), ("}", ""),
    ],
)  # fmt: skip
def test_output_of_something_else(old: str, new: str) -> None:
    assert old in ETS
    with pytest.raises(ValueError):
        parse_dcb(ETS.replace(old, new, 1), PFC, APP)


@pytest.mark.parametrize("app", ["[]", '{"dscp_prio":[[8]]}', '{"dscp_prio":[["X",1]]}', '{"dscp_prio":[[64,1]]}', "{"])
def test_application_tables_of_something_else(app: str) -> None:
    with pytest.raises(ValueError):
        parse_dcb(ETS, PFC, app)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(["willing", "tc_bw", "prio_pfc", "dscp_prio", "linkinfo"]), inner),
    max_leaves=20,
)  # fmt: skip


@given(JSON, JSON, JSON)
def test_any_json_is_a_state_or_a_value_error(ets: Any, pfc: Any, app: Any) -> None:
    with contextlib.suppress(ValueError):
        parse_dcb(json.dumps(ets), json.dumps(pfc), json.dumps(app))
    parse_vlan_marks(json.dumps([ets]))


def test_commands() -> None:
    assert dcb_commands("eth1", STATE, STATE) == []
    lines = [" ".join(command) for command in dcb_commands("eth1", STATE, wanted_state(WISH, STATE, "eth1"))]
    assert lines == [
        "dcb ets set dev eth1 willing off prio-tc 0:0 1:0 2:0 3:1 4:2 5:0 6:0 7:0 "
        "tc-tsa 0:ets 1:ets 2:ets 3:strict 4:strict 5:strict 6:strict 7:strict tc-bw 0:30 1:30 2:40 3:0 4:0 5:0 6:0 7:0"
    ]


async def test_a_nic_is_set_and_set_back(programs: Path) -> None:
    before = await read_dcb("eth1")
    assert before is not None and before.willing and before.dscp_priority == ((46, 5),)
    wanted = wanted_state(WISH, before, "eth1")
    await carry_out(dcb_commands("eth1", before, wanted))
    assert await read_dcb("eth1") == wanted
    assert fake_dcb.commands(programs)[1:] == [
        "dcb pfc set dev eth1 prio-pfc 0:off 1:off 2:off 3:on 4:off 5:off 6:off 7:off",
        "dcb app add dev eth1 dscp-prio 8:4",
    ]
    await carry_out(dcb_commands("eth1", wanted, before))
    assert await read_dcb("eth1") == before


async def test_nics_without(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await read_dcb("eth2") is None
    with pytest.raises(MissingPrerequisite, match="'dcb ets show dev eth3' failed: Attribute read: Input/output error"):
        await read_dcb("eth3")
    monkeypatch.setenv("PATH", "/nowhere")
    assert await read_dcb("eth1") is None
    with pytest.raises(MissingPrerequisite, match="no 'dcb' program"):
        await carry_out([("dcb", "ets")])


async def test_what_is_not_understood_is_said(programs: Path) -> None:
    fake_dcb.make(programs, {"eth1": {**fake_dcb.FACTORY, "raw": {"ets": "{}"}}})
    with pytest.raises(MissingPrerequisite, match="not understood about eth1"):
        await read_dcb("eth1")


async def test_a_program_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dcb").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "dcb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(dcb, "_ANSWER_S", 0.1)
    with pytest.raises(MissingPrerequisite, match="did not end"):
        await read_dcb("eth1")


async def test_marks_of_a_vlan(programs: Path) -> None:
    before = await read_vlan_marks("vlan10")
    assert before == {2: 1}
    assert await read_vlan_marks("eth1") is None
    assert vlan_commands("vlan10", before, before) == []
    await carry_out(vlan_commands("vlan10", before, {2: 1, 4: 4}))
    assert await read_vlan_marks("vlan10") == {2: 1, 4: 4}
    await carry_out(vlan_commands("vlan10", {2: 1, 4: 4}, before))
    assert await read_vlan_marks("vlan10") == {2: 1, 4: 0}, "0 is what a priority without an entry has"
    assert vlan_commands("vlan10", {2: 1, 4: 0}, before) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "[{}]", '[{"linkinfo":{"info_kind":"bond"}}]', '[{"linkinfo":[]}]'])
def test_what_is_no_vlan(text: str) -> None:
    assert parse_vlan_marks(text) is None


@pytest.mark.skipif(shutil.which("dcb") is None, reason="there is no dcb program")
async def test_the_real_program_says_that_lo_has_none() -> None:
    assert await read_dcb("lo") is None


async def test_the_real_ip_says_that_lo_is_no_vlan() -> None:
    assert await read_vlan_marks("lo") is None
    with pytest.raises(MissingPrerequisite, match="nothere"):
        await read_vlan_marks("nothere")
