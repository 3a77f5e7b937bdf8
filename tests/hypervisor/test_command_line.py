"""QEMU's arguments: what each field becomes, and that two hosts show the guest the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from livemove.base.errors import Bug
from livemove.hypervisor.command_line import Place, command_line
from livemove.hypervisor.frozen import FrozenVm

from .conftest import frozen_from

PLACE = Place(Path("/run/livemove/web1"), "kvm", (), True)


def arguments(frozen: FrozenVm, place: Place = PLACE, *, incoming: bool = False) -> list[str]:
    return command_line(frozen, place, qemu="qemu", incoming=incoming)


def after(argv: list[str], option: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def objects(argv: list[str], option: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in after(argv, option)]


def test_what_is_always_there() -> None:
    argv = arguments(frozen_from())
    assert argv[0] == "qemu"
    for option in ("-no-user-config", "-nodefaults", "-sandbox", "-uuid"):
        assert option in argv
    assert after(argv, "-name") == ["web1,debug-threads=on"]
    assert after(argv, "-machine")[0].startswith("pc-q35-10.0,memory-backend=ram0")
    assert after(argv, "-cpu")[0].endswith(",enforce")
    assert after(argv, "-accel") == ["kvm"]
    assert after(argv, "-action") == ["shutdown=pause,panic=pause,reboot=reset"]
    assert after(argv, "-chardev")[0] == "socket,id=qmp,path=/run/livemove/web1/qmp.sock,server=on,wait=off"
    assert "logfile=/run/livemove/web1/console.log,logappend=on" in after(argv, "-chardev")[1]
    assert objects(argv, "-device") == [{"driver": "pvpanic", "id": "pvpanic"}]
    assert "-S" not in argv and "-incoming" not in argv and "-kernel" not in argv


def test_incoming_waits() -> None:
    there, here = arguments(frozen_from(), incoming=True), arguments(frozen_from())
    assert there == [*here, "-S", "-incoming", "defer"]


@pytest.mark.parametrize(
    ("memory", "backend"),
    [
        ("", {"qom-type": "memory-backend-memfd", "share": True}),
        ('backing = "private"', {"qom-type": "memory-backend-ram", "share": False, "prealloc": False}),
        (
            'backing = "private"\npopulate = true',
            {"qom-type": "memory-backend-ram", "share": False, "prealloc": True},
        ),
        ("populate = true", {"qom-type": "memory-backend-memfd", "share": True}),
        (
            'backing = "hugetlb"\nhugepage_size = "1GiB"',
            {"qom-type": "memory-backend-memfd", "share": True, "hugetlb": True, "hugetlbsize": 1 << 30},
        ),
    ],
)
def test_memory(memory: str, backend: dict[str, Any]) -> None:
    argv = arguments(frozen_from(f'[memory]\nsize = "1GiB"\n{memory}'))
    assert objects(argv, "-object") == [{"id": "ram0", "size": 1 << 30, **backend}]
    assert after(argv, "-m") == ["1024M"]


@pytest.mark.parametrize(
    ("cache", "direct", "no_flush", "write_cache"),
    [
        ("none", True, False, "on"),
        ("directsync", True, False, "off"),
        ("writeback", False, False, "on"),
        ("writethrough", False, False, "off"),
        ("unsafe", False, True, "on"),
    ],
)
def test_cache_modes(cache: str, direct: bool, no_flush: bool, write_cache: str) -> None:
    argv = arguments(frozen_from(f'[[disk]]\npath = "/srv/a,b"\nformat = "qcow2"\ncache = "{cache}"'))
    (node,) = objects(argv, "-blockdev")
    assert (node["driver"], node["node-name"], node["file"]["filename"]) == ("qcow2", "disk0", "/srv/a,b")
    assert node["cache"] == node["file"]["cache"] == {"direct": direct, "no-flush": no_flush}
    device = objects(argv, "-device")[1]
    assert (device["drive"], device["addr"], device["bus"]) == ("disk0", "0x10", "pcie.0")
    assert (device["write-cache"], device["werror"], device["bootindex"]) == (write_cache, "stop", 1)


def test_block_device_read_only_with_serial() -> None:
    argv = arguments(frozen_from('[[disk]]\npath = "/dev/vg/x"\nkind = "block"\nreadonly = true\nserial = "S1"'))
    (node,) = objects(argv, "-blockdev")
    assert node["file"]["driver"] == "host_device"
    assert node["read-only"] is node["file"]["read-only"] is True
    assert objects(argv, "-device")[1]["serial"] == "S1"


def test_network_cards() -> None:
    frozen = frozen_from('[[nic]]\nbridge = "br0"\n[[nic]]\ntap = "t1"\nmodel = "e1000e"')
    argv = arguments(frozen, Place(PLACE.run_dir, "tcg", ("lm0", "t,1"), True))
    assert after(argv, "-netdev") == [
        "tap,id=nic0,ifname=lm0,script=no,downscript=no,vhost=on",
        "tap,id=nic1,ifname=t,,1,script=no,downscript=no,vhost=off",
    ]
    cards = objects(argv, "-device")[1:]
    assert [(card["driver"], card["mac"], card["addr"]) for card in cards] == [
        ("virtio-net-pci", "52:54:00:00:00:00", "0x02"),
        ("e1000e", "52:54:00:00:00:01", "0x03"),
    ]
    with pytest.raises(Bug):
        arguments(frozen)


def test_kernel_boot() -> None:
    boot = '[boot]\nkernel = "/k"\ninitrd = "/i"\narguments = "console=ttyS0 a,b"\n[[disk]]\npath = "/d"'
    argv = arguments(frozen_from(boot))
    assert (after(argv, "-kernel"), after(argv, "-initrd"), after(argv, "-append")) == (
        ["/k"],
        ["/i"],
        ["console=ttyS0 a,b"],
    )
    assert "bootindex" not in objects(argv, "-device")[1]


def test_uefi() -> None:
    argv = arguments(frozen_from('[uefi]\ncode = "/c"\nvars = "/v"\nshared = true', top='firmware = "uefi"'))
    code, variables = objects(argv, "-blockdev")
    assert (code["node-name"], code["read-only"], variables["read-only"]) == ("uefi-code", True, False)
    assert variables["cache"]["direct"] is True
    assert "pflash0=uefi-code,pflash1=uefi-vars" in after(argv, "-machine")[0]


def test_extra_arguments_passthrough_and_no_console() -> None:
    argv = arguments(
        frozen_from(
            '[[passthrough]]\nhost = "0000:3b:00.1"',
            top='migratable = false\nconsole = false\nextra_arguments = ["-device", "{}"]',
        )
    )
    assert argv[-2:] == ["-device", "{}"]
    assert "-serial" not in argv
    assert objects(argv, "-device")[1] == {
        "driver": "vfio-pci",
        "id": "host0",
        "host": "0000:3b:00.1",
        "bus": "pcie.0",
        "addr": "0x0a",
    }


def test_only_the_place_differs_between_hosts() -> None:
    frozen = frozen_from('[[disk]]\npath = "/d"\n[[nic]]\nbridge = "br0"')
    one = arguments(frozen, Place(Path("/run/a"), "tcg", ("lmA",), False))
    other = arguments(
        FrozenVm.model_validate_json(frozen.model_dump_json()), Place(Path("/run/b"), "tcg", ("lmB",), False)
    )
    assert [word.replace("/run/a", "/run/b").replace("lmA", "lmB") for word in one] == other
