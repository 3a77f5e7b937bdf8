"""The guest's memory seen from beside QEMU: where its memfd is, allocating it ahead of use, which pages it really got."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from livemove.base.errors import NotEnoughMemory, QemuGone
from livemove.base.threads import in_own_thread
from livemove.base.units import KIB, MIB, format_size
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.process import QemuProcess

# One kernel call. Large enough to cost nothing, small enough (20 to 60 ms in a virtual machine) to be cancelled soon.
POPULATE_CHUNK_BYTES = 64 * MIB

SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
THP_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)")


def memfd_path(process: QemuProcess, frozen: FrozenVm) -> Path | None:
    """``/proc/PID/fd/N`` of the guest's memory; None when its backing is private or the process is gone."""
    if frozen.backing == "private":
        return None
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(entry.readlink()).startswith("/memfd:") and entry.stat().st_size == frozen.memory_bytes:
                    return entry
    return None


async def populate(
    process: QemuProcess,
    frozen: FrozenVm,
    *,
    progress: Callable[[int, int], None] | None = None,
    chunk_bytes: int = POPULATE_CHUNK_BYTES,
) -> int:
    """Allocate all of the guest's memory, beside the running QEMU; what is there already is not touched.

    :param progress: called in the loop with (bytes done, bytes in all) after each chunk.
    :return: bytes allocated; 0 when the backing is private (QEMU has done it before it started, if asked).
    :raise NotEnoughMemory: the host has no more; what was allocated stays until QEMU ends.
    :raise QemuGone: the process is gone.

    When cancelled it ends after the chunk at hand.
    """
    if frozen.backing == "private":
        return 0
    path = memfd_path(process, frozen)
    if path is None:
        raise QemuGone(f"QEMU of {frozen.name} (process {process.pid}) has no memory to populate.")
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def work() -> int:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            done = 0
            while done < frozen.memory_bytes and not stop.is_set():
                step = min(chunk_bytes, frozen.memory_bytes - done)
                os.posix_fallocate(fd, done, step)
                done += step
                if progress is not None:
                    loop.call_soon_threadsafe(progress, done, frozen.memory_bytes)
            return done
        finally:
            os.close(fd)

    try:
        # of its own: it may take minutes, and a few VMs would leave the agent's shared threads for nobody else
        return await in_own_thread(work, name=f"populate {frozen.name}")
    except asyncio.CancelledError:
        stop.set()
        raise
    except (FileNotFoundError, ProcessLookupError) as error:
        raise QemuGone(f"QEMU of {frozen.name} ended while its memory was populated.") from error
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.ENOSPC):
            raise
        size = format_size(frozen.memory_bytes)
        raise NotEnoughMemory(f"The host ran out of memory while it populated the {size} of {frozen.name}.") from error


def describe_backing(process: QemuProcess, frozen: FrozenVm) -> str:
    """What kind of pages the guest's memory got, as a sentence with the reason. Raises QemuGone."""
    try:
        smaps = Path(f"/proc/{process.pid}/smaps").read_text(errors="replace")
        memfd = memfd_path(process, frozen)
        allocated_bytes = memfd.stat().st_blocks * 512 if memfd is not None else None
    except (FileNotFoundError, ProcessLookupError) as error:
        raise QemuGone(f"QEMU of {frozen.name} (process {process.pid}) is gone.") from error
    return describe_smaps(
        smaps,
        frozen,
        allocated_bytes=allocated_bytes,
        shmem_enabled=_chosen(SHMEM_ENABLED),
        thp_enabled=_chosen(THP_ENABLED),
    )


def describe_smaps(
    smaps: str, frozen: FrozenVm, *, allocated_bytes: int | None, shmem_enabled: str, thp_enabled: str
) -> str:
    """:func:`describe_backing` on the text of a process's ``smaps``.

    :param allocated_bytes: what the memfd holds; more than QEMU has mapped when it was populated beside it.
    """
    mapped, huge = _guest_pages_bytes(smaps, frozen)
    size, present = (
        format_size(frozen.memory_bytes),
        format_size(mapped if allocated_bytes is None else allocated_bytes),
    )
    if frozen.backing == "hugetlb":
        page = format_size(frozen.hugepage_bytes)
        return f"{size} of reserved huge pages of {page} each, {format_size(huge)} of them in use."
    private = frozen.backing == "private"
    kind = "private" if private else "shared"
    sentence = f"{size} of {kind} memory, {present} of it present, {format_size(huge)} in huge pages"
    if huge == 0:
        setting, path = (thp_enabled, THP_ENABLED) if private else (shmem_enabled, SHMEM_ENABLED)
        sentence += f" ({path} is '{setting}')"
    return sentence + "."


def _guest_pages_bytes(smaps: str, frozen: FrozenVm) -> tuple[int, int]:
    """(bytes mapped and present, bytes of those in huge pages) of the guest's memory."""
    present = huge = 0
    inside = False
    for line in smaps.splitlines():
        if mapping := _MAPPING.fullmatch(line):
            name, size = mapping[3], int(mapping[2], 16) - int(mapping[1], 16)
            if frozen.backing == "private":
                # it may have grown together with a neighbour
                inside = not name and size >= frozen.memory_bytes
            else:
                inside = name.startswith("/memfd:memory-backend-memfd")
        elif inside:
            key, _, value = line.partition(":")
            if key == "Rss":
                present += _number(value) * KIB
            elif key in ("AnonHugePages", "ShmemPmdMapped", "Shared_Hugetlb", "Private_Hugetlb"):
                huge += _number(value) * KIB
    return present, huge


def _number(value: str) -> int:
    """Of ``  12 kB``; 0 where there is none."""
    text = value.strip().partition(" ")[0]
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0


def _chosen(path: Path) -> str:
    """The bracketed word of a kernel setting that lists its choices."""
    try:
        text = path.read_text()
    except OSError:
        return "not there"
    return text.partition("[")[2].partition("]")[0] or text.strip()
