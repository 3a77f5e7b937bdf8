"""A host's facts without a QEMU, VMs frozen from a few lines of TOML, and one real QEMU that is always cleaned up."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from livemove.hypervisor.command_line import Place, command_line
from livemove.hypervisor.definition import parse_definition
from livemove.hypervisor.frozen import FrozenVm, freeze
from livemove.hypervisor.launch import QemuProcess, kill, launch
from livemove.hypervisor.probe import QemuFacts

UUID = "11111111-2222-4333-8444-555555555555"
FACTS = QemuFacts(
    path="/usr/bin/qemu-system-x86_64",
    version=(10, 0, 2),
    package="",
    accelerator="tcg",
    accelerator_reason="TCG.",
    machines={"q35": "pc-q35-10.0", "pc": "pc-i440fx-10.0"},
    machine_types=frozenset({"pc-q35-10.0", "pc-q35-8.2", "pc-i440fx-10.0"}),
    cpu_models=frozenset({"qemu64-v1", "Nehalem", "max"}),
    capabilities=frozenset({"multifd"}),
    parameters=frozenset({"downtime-limit"}),
    compressions=frozenset({"none", "zstd"}),
    has_tls_psk=True,
    has_mptcp=True,
    has_rdma=False,
)


def frozen_from(toml: str = "", *, top: str = "", facts: QemuFacts = FACTS) -> FrozenVm:
    """`top` goes before the sections, `toml` after them."""
    definition = parse_definition(f'name = "web1"\n{top}\n{toml}')
    return freeze(definition, facts, uuid=UUID, mac_for=lambda index: f"52:54:00:00:00:{index:02x}")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, because the path of a UNIX socket is."""
    directory = Path(tempfile.mkdtemp(prefix="lm-test-"))
    yield directory / "vm"
    shutil.rmtree(directory)


Start = Callable[..., Awaitable[QemuProcess]]


@pytest_asyncio.fixture
async def start(run_dir: Path) -> AsyncIterator[Start]:
    """Launches a frozen VM under TCG in `run_dir`; whatever the test does, its process and cgroup end."""
    started: list[QemuProcess] = []

    async def start_vm(frozen: FrozenVm, *, incoming: bool = False, **options: object) -> QemuProcess:
        argv = command_line(frozen, Place(run_dir, "tcg", (), False), qemu=FACTS.path, incoming=incoming)
        process = await launch(frozen.name, argv, run_dir, **options)  # type: ignore[arg-type]
        started.append(process)
        return process

    yield start_vm
    for process in started:
        await kill(process, grace_s=0)
