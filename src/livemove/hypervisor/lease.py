"""The last line against a VM that runs twice: a lock that the VM's QEMU itself holds for as long as it may run its guest.

Image locks do this for disks that are files on a file system that locks; a VM without disks, or on block devices, has none.
So every VM has a file of its own in the lease directory, which is open in its QEMU from the start on (descriptor
:data:`LEASE_FD`), and an exclusive flock(2) on it. The lock belongs to the open file description, so it outlives the agent
and ends with QEMU, however that ends; no time-out and no clock is involved. In the hand-over the source's agent gives it up
before the GO and the destination's takes it before its guest runs, both through pidfd_getfd(2) (Linux 5.6, CAP_SYS_PTRACE).

In a directory of the host's own it keeps two QEMUs of one VM apart there. In a directory that the hosts share
(NFS 4, a cluster file system: whatever carries flock between hosts) it binds all of them; both hosts of a journey must then
mean the same directory, which its :func:`domain` tells.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from livemove.base.errors import Conflict, LivemoveError, MissingPrerequisite, QemuGone
from livemove.base.shortage import shortage_of
from livemove.base.threads import in_own_thread
from livemove.hypervisor.process import QemuProcess, find

#: One digit: all that a POSIX shell's redirection takes.
LEASE_FD = 9
#: What the start of a QEMU writes to its log when another one holds the lease.
HELD = "livemove: the lease of this VM is held by another QEMU"
_DOMAIN_FILE = "livemove-lease-domain"
_SYS_PIDFD_GETFD = 438

_libc = ctypes.CDLL(None, use_errno=True)


async def change(how: Callable[[QemuProcess], None], process: QemuProcess) -> None:
    """:func:`take` or :func:`give_up` without holding up the loop: the directory may be another machine's, and slow.

    Raises what they raise, and MissingPrerequisite when there is no thread to be had.
    """
    try:
        # a hand-over must not stand behind somebody's disks or memory
        waiting = in_own_thread(lambda: how(process), name=f"lease of {process.name}")
    except RuntimeError as error:
        raise MissingPrerequisite(f"The lease of VM '{process.name}' cannot be reached: {error}.") from error
    await waiting


def lease_path(directory: Path, vm_uuid: str) -> Path:
    """The file of one VM, made if it is not there. Raises MissingPrerequisite when it cannot be."""
    path = directory / f"{vm_uuid}.lease"
    try:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise MissingPrerequisite(
            f"The lease {path} cannot be made: {error.strerror}.", remedy="Correct 'lease_dir' on that host."
        ) from error
    return path


def domain(directory: Path) -> str:
    """The same text on all hosts that share the directory. Raises MissingPrerequisite when it cannot be written."""
    path = directory / _DOMAIN_FILE
    try:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        made = directory / f".{_DOMAIN_FILE}-{uuid.uuid4()}"
        if not path.exists():
            made.write_text(str(uuid.uuid4()))
            try:
                # whole or not at all, and only the first one counts, whichever host was first
                os.link(made, path)
            except FileExistsError:
                pass
            finally:
                made.unlink()
        return path.read_text(errors="replace").strip()[:64]
    except OSError as error:
        raise MissingPrerequisite(
            f"The lease directory {directory} cannot be used: {error.strerror}.",
            remedy="Mount it, or correct 'lease_dir' on that host.",
        ) from error


def take(process: QemuProcess) -> None:
    """That QEMU holds its VM's lease when this returns; nothing changes when it did.

    Raises Conflict when another QEMU holds it, QemuGone, and another OperatorError when the kernel does not let us.
    """
    descriptor = _borrow(process)
    if descriptor is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise _unreachable(process, error) from error
        raise Conflict(
            f"Another QEMU holds the lease of VM '{process.name}': it may be running elsewhere.",
            remedy="Find it by the lease directory's other hosts; end it there before it is started here.",
        ) from error
    finally:
        os.close(descriptor)


def give_up(process: QemuProcess) -> None:
    """That QEMU holds its VM's lease no more; another one may take it. Raises QemuGone, an OperatorError."""
    descriptor = _borrow(process)
    if descriptor is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise _unreachable(process, error) from error
        finally:
            os.close(descriptor)


def _borrow(process: QemuProcess) -> int | None:
    """QEMU's own descriptor of the lease, for the caller to close; None in a QEMU that was started without one.

    Raises QemuGone, an OperatorError.
    """
    try:
        return _descriptor_in(process)
    except OSError as error:
        raise _unreachable(process, error) from error


def _descriptor_in(process: QemuProcess) -> int | None:
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError as error:
        raise QemuGone(f"QEMU of {process.name} (process {process.pid}) is gone.") from error
    try:
        if not find(process):
            raise QemuGone(f"QEMU of {process.name} (process {process.pid}) is gone.")
        descriptor = int(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, LEASE_FD, 0))
        number = ctypes.get_errno()
    finally:
        os.close(pidfd)
    if descriptor >= 0 and Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".lease":
        return descriptor
    if descriptor >= 0:
        os.close(descriptor)
        return None
    if number == errno.EBADF:
        return None
    if number == errno.ESRCH:
        raise QemuGone(f"QEMU of {process.name} (process {process.pid}) is gone.")
    raise OSError(number, os.strerror(number))


def _unreachable(process: QemuProcess, error: OSError) -> LivemoveError:
    return shortage_of(error) or MissingPrerequisite(
        f"The lease of VM '{process.name}' cannot be reached in its QEMU: {error.strerror}.",
        remedy="Give the agent CAP_SYS_PTRACE; if 'lease_dir' is set, see that it can be used.",
    )
