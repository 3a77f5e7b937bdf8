"""QEMUs of ours that the database does not know: started just before the agent was killed."""

from __future__ import annotations

import os
from pathlib import Path

from livemove.hypervisor.process import QemuProcess, start_ticks


def qemu_in(run_dir: Path, name: str) -> QemuProcess | None:
    """The QEMU whose monitor socket is in `run_dir`, found by its command line; None when there is none.

    The socket's path in the arguments is unique to one VM of one agent, so nothing that is not ours is ever named.
    """
    wanted = f"{run_dir}/qmp.sock".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if wanted not in command or b"qemu" not in os.fsencode((entry / "exe").readlink()):
                continue
            ticks = start_ticks(int(entry.name))
            if ticks is not None:
                return QemuProcess(name, int(entry.name), ticks, cgroup=_cgroup_of(entry))
        except OSError:
            continue
    return None


def _cgroup_of(entry: Path) -> str | None:
    for line in (entry / "cgroup").read_text().splitlines():
        if line.startswith("0::") and "/livemove/" in line:
            for mount in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
                path = Path(mount + line[3:])
                if path.is_dir():
                    return str(path)
    return None
