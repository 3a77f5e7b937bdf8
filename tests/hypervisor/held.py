"""Real memory to read from beside it: a process with a memfd and private pages, which stands for a QEMU."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from livemove.base.units import KIB, MIB
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.guest_memory import GuestMemory, open_blocks
from livemove.hypervisor.process import QemuProcess, start_ticks
from livemove.hypervisor.ram_blocks import RamBlock

from .conftest import frozen_from

SIZE = 64 * MIB
#: Not a whole number of chunks.
SMALL = 300 * KIB
HOLDER = """
import ctypes, mmap, os, sys
fd = os.memfd_create("memory-backend-memfd"); os.ftruncate(fd, int(sys.argv[1]))
big = mmap.mmap(fd, int(sys.argv[1])); small = mmap.mmap(-1, int(sys.argv[2]), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 4 * 1048576, 4096): big[at : at + 8] = at.to_bytes(8, "big")
for at in range(0, int(sys.argv[2]), 4096): small[at : at + 8] = (~at & (1 << 63) - 1).to_bytes(8, "big")
print(*(ctypes.addressof(ctypes.c_char.from_buffer(m)) for m in (big, small)), flush=True)
sys.stdin.read()
"""


@dataclass
class Held:
    """A process that stands for QEMU."""

    process: QemuProcess
    blocks: list[RamBlock]
    memfd: Path
    private_backing: bool = False

    @property
    def frozen(self) -> FrozenVm:
        backing = "private" if self.private_backing else "memfd"
        return frozen_from(f'[memory]\nsize = "{SIZE // MIB}MiB"\nbacking = "{backing}"\n')

    def open(self) -> GuestMemory:
        return open_blocks(self.process, self.frozen, self.blocks)

    def flip(self, name: str, offset: int) -> None:
        """Flip one bit behind its owner's back."""
        block = next(block for block in self.blocks if block.name == name)
        with open(f"/proc/{self.process.pid}/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
            memory.seek(block.address + offset)
            byte = memory.read(1)[0]
            memory.seek(block.address + offset)
            memory.write(bytes([byte ^ 1]))

    @property
    def ramblock_text(self) -> str:
        """As QEMU answers ``info ramblock``."""
        lines = ["Block Name PSize Offset Used Total HVA RO"]
        lines += [
            f"{b.name} 4 KiB {0:#018x} {b.used_bytes:#018x} {b.total_bytes:#018x} {b.address:#018x} rw"
            for b in self.blocks
        ]
        return "\n".join(lines)


@contextlib.contextmanager
def holding() -> Iterator[Callable[[], Held]]:
    """Makes as many as asked for, each with the same content, and ends them."""
    held = []

    def make() -> Held:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(SIZE), str(SMALL)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        held.append(process)
        assert process.stdout is not None
        big, small = (int(word) for word in process.stdout.readline().split())
        blocks = [RamBlock("ram0", SIZE, SIZE, big), RamBlock("pc.rom", SMALL, SMALL, small)]
        memfd = next(entry for entry in Path(f"/proc/{process.pid}/fd").iterdir() if "memfd:" in str(entry.readlink()))
        return Held(QemuProcess("web1", process.pid, start_ticks(process.pid) or 0), blocks, memfd)

    try:
        yield make
    finally:
        for process in held:
            process.kill()
            process.communicate()
