"""The list of RAM blocks in the forms that QEMU gives it, and nothing else."""

from __future__ import annotations

import pytest

from livemove.base.errors import QemuFailed
from livemove.hypervisor.ram_blocks import RamBlock, parse_ram_blocks

LISTED = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                    ram0    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 0x00007ff5b3fff000  rw
    /rom@etc/acpi/tables    4 KiB  0x00000000080c0000 0x0000000000020000 0x0000000000200000 0x00007ff5b3200000  ro
0000:00:01.0/virtio-net-pci.rom    4 KiB  0x0000000008080000 0x0000000000040000 0x0000000000040000 0x00007ff600200000  ro
                            2 MiB  0x0000000009080000 0x0000000000040000 0x0000000000040000 0x00007ff700200000  rw
"""


def test_every_block_with_its_sizes_and_place():
    assert parse_ram_blocks(LISTED) == [
        RamBlock("ram0", 0x8000000, 0x8000000, 0x7FF5B3FFF000),
        RamBlock("/rom@etc/acpi/tables", 0x20000, 0x200000, 0x7FF5B3200000),
        RamBlock("0000:00:01.0/virtio-net-pci.rom", 0x40000, 0x40000, 0x7FF600200000),
        RamBlock("", 0x40000, 0x40000, 0x7FF700200000),
    ]


def test_the_form_of_older_versions():
    older = "\n".join(line[:-4] for line in LISTED.splitlines())
    assert parse_ram_blocks(older) == parse_ram_blocks(LISTED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unknown command: 'info ramblock'\r\n",
        LISTED.replace("0x", "?"),
        LISTED.replace("20000 0x00000", "20000000 0x00000"),
        LISTED.replace("HVA", ""),
    ],
)
def test_anything_else_is_refused(text: str):
    with pytest.raises(QemuFailed):
        parse_ram_blocks(text)
