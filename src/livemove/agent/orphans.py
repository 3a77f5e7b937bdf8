"""QEMUs of this agent, found by their command lines: what the database does not know, because the agent was killed.

A QEMU is ours when the monitor socket that its command line names is in our own run directory: the same path, *and* the
same directory as that QEMU sees it, since one in a container may name the same path and mean another place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from livemove.base.settings import NAME
from livemove.hypervisor.command_line import QMP_SOCKET
from livemove.hypervisor.process import QemuProcess, start_ticks


def qemu_in(run_dir: Path, name: str) -> QemuProcess | None:
    """The QEMU whose monitor socket is in `run_dir`; None when there is none."""
    return next((found for found in qemus_under(run_dir.parent) if found.name == run_dir.name), None)


def qemus_under(vms_dir: Path) -> Iterator[QemuProcess]:
    """The QEMUs whose monitor socket is ``vms_dir/NAME/qmp.sock``, each with that name."""
    # QEMU writes a comma inside of a value twice
    ours = re.escape(os.fsencode(str(vms_dir).replace(",", ",,")))
    names = re.compile(rb"\0socket,id=qmp,path=" + ours + rb"/([^/\0,]+)/" + re.escape(QMP_SOCKET.encode()) + rb"[\0,]")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            said = names.search((entry / "cmdline").read_bytes())
            if said is None or b"qemu" not in os.fsencode((entry / "exe").readlink().name):
                continue
            name = os.fsdecode(said[1])
            if not NAME.fullmatch(name) or not _sees(entry, vms_dir):
                continue
            ticks = start_ticks(int(entry.name))
            if ticks is not None:
                yield QemuProcess(name, int(entry.name), ticks, cgroup=_cgroup_of(entry))
        except OSError:
            continue


def _sees(entry: Path, directory: Path) -> bool:
    """Whether the process means our directory by that path. Raises OSError when it has none there."""
    return (entry / "root" / directory.absolute().relative_to("/")).samefile(directory)


def _cgroup_of(entry: Path) -> str | None:
    for line in (entry / "cgroup").read_text(errors="replace").splitlines():
        if line.startswith("0::") and "/livemove/" in line:
            for mount in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
                path = Path(mount + line[3:])
                if path.is_dir():
                    return str(path)
    return None
