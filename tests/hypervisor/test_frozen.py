"""Freezing: what a definition is resolved to, that it survives JSON, and what must not move."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from livemove.base.errors import CpuUnsupported, LivemoveError, NotMigratable, QemuTooOld, UnsafeDisk
from livemove.base.units import GIB, MIB
from livemove.hypervisor.definition import parse_definition
from livemove.hypervisor.frozen import (
    BASELINE_CPU,
    FrozenVm,
    definition_digest,
    freeze,
    refuse_unmigratable,
    refuse_unsupported_cpu,
)

from .conftest import FACTS, UUID, frozen_from

FULL = """
[memory]
size = "2GiB"
backing = "hugetlb"
[[disk]]
path = "/srv/a.qcow2"
format = "qcow2"
[[disk]]
path = "/srv/b"
[[nic]]
bridge = "br0"
[[nic]]
tap = "t1"
mac = "52:54:00:AA:BB:CC"
"""


def test_aliases_become_concrete() -> None:
    frozen = frozen_from()
    assert (frozen.machine, frozen.root_bus) == ("pc-q35-10.0", "pcie.0")
    assert (frozen.cpu_model, frozen.cpu_name) == (BASELINE_CPU, "qemu64-v1")
    assert (frozen.uuid, frozen.version, frozen.accelerator) == (UUID, 1, "tcg")
    assert (frozen.memory_bytes, frozen.hugepage_bytes) == (GIB, 0)
    assert frozen_from(top='machine = "pc"').root_bus == "pci.0"
    assert frozen_from(top='machine = "pc-q35-8.2"').machine == "pc-q35-8.2"


def test_every_device_has_its_own_id_and_address() -> None:
    frozen = frozen_from(FULL)
    assert frozen.hugepage_bytes == 2 * MIB
    assert [(disk.id, disk.pci_address) for disk in frozen.disks] == [("disk0", "0x10"), ("disk1", "0x11")]
    assert [(nic.id, nic.pci_address, nic.mac) for nic in frozen.nics] == [
        ("nic0", "0x02", "52:54:00:00:00:00"),
        ("nic1", "0x03", "52:54:00:aa:bb:cc"),
    ]
    assert frozen.files == ("/srv/a.qcow2", "/srv/b")


def test_the_largest_vm_has_no_address_twice() -> None:
    disks = "".join(f'[[disk]]\npath = "/d{n}"\n' for n in range(15))
    nics = '[[nic]]\nbridge = "br0"\n' * 8
    hosts = '[[passthrough]]\nhost = "00:01.0"\n' * 6
    frozen = frozen_from(disks + nics + hosts, top="migratable = false")
    slots = [
        int(device.pci_address, 16) for devices in (frozen.disks, frozen.nics, frozen.passthrough) for device in devices
    ]
    assert len(slots) == len(set(slots)) == 29
    assert min(slots) >= 2 and max(slots) < 0x1F


def test_json_round_trip() -> None:
    frozen = frozen_from(FULL)
    assert FrozenVm.model_validate_json(frozen.model_dump_json()) == frozen


def test_an_unknown_field_from_another_version_is_refused() -> None:
    data = frozen_from().model_dump() | {"numa": 2}
    with pytest.raises(ValidationError):
        FrozenVm.model_validate(data)


def test_unknown_machine_and_cpu() -> None:
    with pytest.raises(QemuTooOld) as too_old:
        frozen_from(top='machine = "pc-q35-11.0"')
    assert "pc-q35-11.0" in too_old.value.message and "q35 is pc-q35-10.0" in too_old.value.message
    with pytest.raises(CpuUnsupported) as unsupported:
        frozen_from('[cpu]\nmodel = "EPYC-Genoa"')
    assert "EPYC-Genoa" in unsupported.value.message
    elsewhere = FACTS.model_copy(update={"cpu_models": frozenset({"486"})})
    with pytest.raises(CpuUnsupported):
        refuse_unsupported_cpu(frozen_from(), elsewhere)


def test_the_digest_tells_an_edit() -> None:
    text = 'name = "web1"'
    frozen = freeze(parse_definition(text), FACTS, uuid=UUID, mac_for=str, digest=definition_digest(text))
    assert frozen.definition_digest == definition_digest(text) != definition_digest(text + "\n")
    assert definition_digest("\ud800")  # text from JSON may hold such


@pytest.mark.parametrize(
    ("toml", "top", "error", "word"),
    [
        ('[[disk]]\npath = "/d"\ncache = "writeback"', "", UnsafeDisk, "cache = 'writeback'"),
        ('[[disk]]\npath = "/d"\ncache = "writethrough"', "", UnsafeDisk, "/d"),
        ('[[disk]]\npath = "/d"\ncache = "unsafe"', "", UnsafeDisk, "/d"),
        ('[[disk]]\npath = "/d"\nshared = false', "", NotMigratable, "needs storage migration, which comes later"),
        ('[uefi]\ncode = "/c"\nvars = "/v"', 'firmware = "uefi"', NotMigratable, "UEFI variables"),
        ("", "migratable = false", NotMigratable, "migratable = false"),
        ('[[passthrough]]\nhost = "00:01.0"', "migratable = false", NotMigratable, "00:01.0"),
    ],
)
def test_what_must_not_move(toml: str, top: str, error: type[LivemoveError], word: str) -> None:
    with pytest.raises(error) as caught:
        refuse_unmigratable(frozen_from(toml, top=top))
    assert word in caught.value.message and "web1" in caught.value.message


@pytest.mark.parametrize(
    ("toml", "top"),
    [
        (FULL, ""),
        ('[[disk]]\npath = "/d"\ncache = "directsync"', ""),
        ('[[disk]]\npath = "/d"\ncache = "writeback"\nreadonly = true', ""),
        ('[uefi]\ncode = "/c"\nvars = "/v"\nshared = true', 'firmware = "uefi"'),
    ],
)
def test_what_may_move(toml: str, top: str) -> None:
    refuse_unmigratable(frozen_from(toml, top=top))
