"""What the QEMU here says of itself, and how such answers are read, kept and judged."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from livemove.base.errors import MissingPrerequisite, QemuFailed, QemuTooOld
from livemove.hypervisor import probe
from livemove.hypervisor.probe import QemuFacts, Schema, probe_qemu

from .conftest import FACTS

SCHEMA: list[Mapping[str, Any]] = [
    {"meta-type": "command", "name": "migrate-set-parameters", "arg-type": "1", "ret-type": "0"},
    {"meta-type": "object", "name": "1", "members": [{"name": "downtime-limit", "type": "int"}, {"name": "multifd-compression", "type": "2"}]},
    {"meta-type": "enum", "name": "2", "members": [{"name": "none"}, {"name": "zlib"}], "values": ["none", "zlib"]},
    {"meta-type": "enum", "name": "3", "values": ["rdma"]},
    {"meta-type": "builtin", "name": "int", "json-type": "int"},
]  # fmt: skip


def test_the_schema_is_read() -> None:
    schema = Schema(SCHEMA)
    assert schema.argument_names("migrate-set-parameters") == {"downtime-limit", "multifd-compression"}
    assert schema.argument_values("migrate-set-parameters", "multifd-compression") == {"none", "zlib"}
    assert schema.argument_names("no-such") == schema.argument_values("no-such", "x") == frozenset()
    assert schema.has_value("rdma") and not schema.has_value("mptcp")
    assert schema.has_member("downtime-limit") and not schema.has_member("mptcp")


def test_facts_survive_json() -> None:
    assert QemuFacts.model_validate_json(FACTS.model_dump_json()) == FACTS
    assert FACTS.version_text == "10.0.2"


async def test_no_such_program() -> None:
    with pytest.raises(MissingPrerequisite, match="no-such-qemu"):
        await probe_qemu("no-such-qemu")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Answers in place of QEMU's; `asked` counts."""
    answers: dict[str, Any] = {"version": (10, 0, 2), "runs": (True, "a test guest ran"), "asked": 0}

    async def ask(path: str, accelerator: str, reason: str, work_dir: Path | None) -> QemuFacts:
        answers["asked"] += 1
        changes = {
            "path": path,
            "version": answers["version"],
            "accelerator": accelerator,
            "accelerator_reason": reason,
        }
        return FACTS.model_copy(update=changes)

    async def runs_a_guest(path: str, accelerator: str, *, work_dir: Path | None) -> tuple[bool, str]:
        assert accelerator == "kvm"
        return answers["runs"]  # type: ignore[no-any-return]

    monkeypatch.setattr(probe, "_ask", ask)
    monkeypatch.setattr(probe, "runs_a_guest", runs_a_guest)
    monkeypatch.setattr("livemove.hypervisor.probe.os.access", lambda path, mode: True)
    return answers


@pytest.mark.parametrize(
    ("wanted", "runs", "chosen", "reason"),
    [
        ("auto", (True, "a test guest ran"), "kvm", "KVM: a test guest ran."),
        ("auto", (False, "it fell over"), "tcg", "TCG, because it fell over."),
        ("kvm", (True, "a test guest ran"), "kvm", "KVM: a test guest ran."),
        ("tcg", (True, "a test guest ran"), "tcg", "TCG, as the host's settings ask."),
    ],
)
async def test_the_accelerator_and_why(
    told: dict[str, Any], wanted: str, runs: tuple[bool, str], chosen: str, reason: str
) -> None:
    told["runs"] = runs
    facts = await probe_qemu("sh", wanted)
    assert (facts.accelerator, facts.accelerator_reason) == (chosen, reason)


async def test_kvm_insisted_on_and_not_working(told: dict[str, Any]) -> None:
    told["runs"] = (False, "it fell over")
    with pytest.raises(MissingPrerequisite, match="it fell over"):
        await probe_qemu("sh", "kvm")


@pytest.mark.parametrize("version", [(7, 2, 9), (8, 1, 5)])
async def test_an_old_qemu(told: dict[str, Any], version: tuple[int, int, int]) -> None:
    told["version"] = version
    with pytest.raises(QemuTooOld, match="loses memory pages"):
        await probe_qemu("sh", "tcg")
    facts = await probe_qemu("sh", "kvm")
    assert len(facts.warnings) == 1 and "older than 8.2" in facts.warnings[0]
    told["version"] = (8, 2, 0)
    assert (await probe_qemu("sh", "tcg")).warnings == ()


async def test_answers_are_kept_and_rubbish_is_not_believed(told: dict[str, Any], tmp_path: Path) -> None:
    first = await probe_qemu("sh", cache_dir=tmp_path / "cache")
    assert await probe_qemu("sh", cache_dir=tmp_path / "cache") == first
    assert told["asked"] == 1
    await probe_qemu("sh", "tcg", cache_dir=tmp_path / "cache")
    await probe_qemu("true", cache_dir=tmp_path / "cache")
    assert told["asked"] == 3
    for file in (tmp_path / "cache").iterdir():
        file.write_text('{"facts_version": 0}')
    assert await probe_qemu("sh", cache_dir=tmp_path / "cache") == first
    assert told["asked"] == 4


@pytest.mark.qemu
async def test_the_qemu_of_this_machine(tmp_path: Path) -> None:
    facts = await probe_qemu("qemu-system-x86_64", "tcg", cache_dir=tmp_path)
    assert facts.version >= (8, 2, 0)
    assert facts.machines["q35"] in facts.machine_types and facts.machines["q35"].startswith("pc-q35-")
    assert {"multifd", "return-path", "late-block-activate", "pause-before-switchover"} <= facts.capabilities
    assert {"max-bandwidth", "downtime-limit", "multifd-channels", "tls-creds"} <= facts.parameters
    assert {"none", "zlib"} <= facts.compressions
    assert facts.has_tls_psk and facts.has_mptcp
    assert "qemu64-v1" in facts.cpu_models and "EPYC-Genoa" not in facts.cpu_models
    stored = await asyncio.wait_for(probe_qemu("qemu-system-x86_64", "tcg", cache_dir=tmp_path), 0.05)
    assert stored == facts


@pytest.mark.qemu
async def test_a_program_that_is_no_qemu() -> None:
    with pytest.raises(QemuFailed, match="does not start"):
        await probe_qemu("false", "tcg")
