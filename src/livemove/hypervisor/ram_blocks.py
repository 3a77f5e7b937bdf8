"""QEMU's RAM blocks by its own word (``info ramblock``): the guest's memory, firmware, option ROMs, ACPI tables. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from livemove.base.errors import QemuFailed

#: ``name  4 KiB  0xOFFSET 0xUSED 0xTOTAL 0xHVA  rw``; the last column came with QEMU 9.
_LINE = re.compile(r"^ *(.*?) +\d+ [KMGT]iB +0x[0-9a-f]+ +0x([0-9a-f]+) +0x([0-9a-f]+) +0x([0-9a-f]+)(?: +r[ow])?$")


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One block.

    :param name: as in the migration stream; empty: QEMU does not migrate it.
    :param used_bytes: what of it is in use, and migrated; a block for ACPI tables may grow up to `total_bytes`.
    :param address: where it is in QEMU's own address space.
    """

    name: str
    used_bytes: int
    total_bytes: int
    address: int


def parse_ram_blocks(text: str) -> list[RamBlock]:
    """The blocks in the text of ``info ramblock``. Raises QemuFailed when it is not that text."""
    header, *lines = text.splitlines() or [""]
    if header.split()[:2] != ["Block", "Name"] or "HVA" not in header:
        raise QemuFailed(f"QEMU's list of RAM blocks has an unknown form: {header[:200]!r}.")
    blocks = []
    for line in lines:
        if not line.strip():
            continue
        found = _LINE.match(line.rstrip())
        if found is None:
            raise QemuFailed(f"QEMU's list of RAM blocks has an unknown line: {line[:200]!r}.")
        used, total, address = (int(found[index], 16) for index in (2, 3, 4))
        if used > total:
            raise QemuFailed(f"QEMU says that {used} of {total} bytes are in use of the RAM block {found[1]!r}.")
        blocks.append(RamBlock(found[1], used, total, address))
    return blocks
