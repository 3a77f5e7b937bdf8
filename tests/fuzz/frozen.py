"""A frozen VM with one of everything."""

from __future__ import annotations

from livemove.hypervisor.definition import parse_definition
from livemove.hypervisor.frozen import FrozenVm, freeze
from livemove.hypervisor.probe import QemuFacts

UUID = "11111111-2222-4333-8444-555555555555"
FACTS = QemuFacts(
    path="/nonexistent/qemu", version=(10, 0, 2), package="", accelerator="tcg", accelerator_reason="TCG.",
    machines={"q35": "pc-q35-10.0"}, machine_types=frozenset({"pc-q35-10.0"}), cpu_models=frozenset({"qemu64-v1", "max"}),
    capabilities=frozenset({"multifd", "events", "return-path", "late-block-activate"}), parameters=frozenset({"downtime-limit"}),
    compressions=frozenset({"none", "zstd"}), has_tls_psk=True, has_mptcp=True, has_rdma=False,
)  # fmt: skip


def frozen_vm(name: str = "web1") -> FrozenVm:
    text = f'name = "{name}"\n[memory]\nsize = "64MiB"\n[[disk]]\npath = "/srv/d"\ncache = "none"\n[[nic]]\nbridge = "br0"\n'
    return freeze(parse_definition(text), FACTS, uuid=UUID, mac_for=lambda index: f"52:54:00:00:00:{index:02x}")
