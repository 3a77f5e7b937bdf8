"""Starting a QEMU that outlives the agent.

1. the VM's run directory and log                       (ours, 0700)
2. its cgroup, or systemd unit                          (never the agent's: it would die with it)
3. the process                                          (own session, no pipe or descriptor of ours)
4. wait until QEMU obeys on QMP, or has ended           (then its own last words are the error)

systemd starts it only where it runs *and* shares the agent's network namespace: a unit would be in the host's namespace,
not in that of an agent in a lab, and would not find its taps.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import pwd
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from livemove.base.errors import Conflict, CpuUnsupported, MissingPrerequisite, QemuFailed
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor.command_line import CONSOLE_SOCKET, QMP_SOCKET
from livemove.hypervisor.greeting import until_it_obeys
from livemove.hypervisor.lease import HELD, LEASE_FD
from livemove.hypervisor.memory import describe_backing, memfd_path, populate
from livemove.hypervisor.probe import INSTALL_QEMU
from livemove.hypervisor.process import QemuProcess, find, kill, remove_cgroup, start_ticks, wait_gone

__all__ = [
    "QemuProcess",
    "describe_backing",
    "find",
    "kill",
    "launch",
    "log_tail",
    "memfd_path",
    "populate",
    "remove_cgroup",
    "systemd_run_arguments",
    "wait_gone",
]

QEMU_LOG = "qemu.log"
# How often the QMP socket is tried; QEMU takes some 20 ms to answer.
# sun_path of a UNIX socket address, with its final zero.
_SOCKET_PATH_BYTES = 108

_log = logging.getLogger(__name__)


async def launch(
    name: str,
    argv: list[str],
    run_dir: Path,
    *,
    user: str = "",
    start_timeout_s: float = 20,
    lease: Lease | None = None,
) -> QemuProcess:
    """Start QEMU and return when it answers on ``run_dir/qmp.sock``.

    :param argv: from :func:`livemove.hypervisor.command_line.command_line`.
    :param user: unprivileged user that QEMU runs as; empty: the agent's own.
    :param lease: the VM's lease, open in QEMU as long as it lives.
    :raise MissingPrerequisite: the program or the user is not there, or `run_dir` is too long for a socket's path.
    :raise Conflict: a QEMU already answers in `run_dir`, or another one holds the lease.
    :raise CpuUnsupported: QEMU cannot give the guest the CPU model.
    :raise QemuFailed: QEMU ended at once (the message is its own) or did not answer in time.

    If it raises, or is cancelled, there is no process and no cgroup.
    """
    _check_prerequisites(argv[0], run_dir, user)
    await _make_run_dir(name, run_dir, user)
    if _systemd_serves_us():
        process = await _start_by_systemd(name, argv, run_dir, user, lease)
    else:
        process = _start_detached(name, argv, run_dir, user, lease)
    try:
        await _until_it_answers(process, run_dir, start_timeout_s)
    except BaseException:
        await kill(process, grace_s=0)
        raise
    return process


@dataclass(frozen=True, slots=True)
class Lease:
    """A file of hypervisor.lease, and whether QEMU must hold it before it starts (else somebody takes it later)."""

    path: Path
    hold: bool


# The lock is on the open file, which QEMU inherits: whoever holds it when QEMU begins holds it until QEMU ends.
_OPEN_LEASE = f"""exec {LEASE_FD}>>"$1" || exit 126
if [ "$2" = hold ] && ! flock -n {LEASE_FD}; then echo "{HELD}" >&2; exit 75; fi
shift 2
exec "$@"
"""


def with_lease(argv: list[str], lease: Lease | None, user: str) -> list[str]:
    """The command `argv` with the lease open in it; `user` is to own the file."""
    if lease is None:
        return argv
    if user:
        try:
            os.chown(lease.path, pwd.getpwnam(user).pw_uid, -1)
        except OSError as error:
            raise MissingPrerequisite(
                f"The lease {lease.path} cannot be given to the user '{user}': {error.strerror}.",
                remedy="Let the hosts' root change owners in 'lease_dir' (NFS: no_root_squash), or leave 'qemu_user' empty.",
            ) from error
    return ["/bin/sh", "-c", _OPEN_LEASE, "livemove", str(lease.path), "hold" if lease.hold else "later", *argv]


def log_tail(run_dir: Path, *, lines: int = 8) -> str:
    """The last lines that QEMU wrote to its log; empty when there are none."""
    try:
        with (run_dir / QEMU_LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


# 1. The run directory -------------------------------------------------------------------------------------------------


def _check_prerequisites(qemu: str, run_dir: Path, user: str) -> None:
    if shutil.which(qemu) is None:
        raise MissingPrerequisite(f"The program '{qemu}' is not on this host.", remedy=INSTALL_QEMU)
    longest = len(os.fsencode(run_dir / CONSOLE_SOCKET)) + 1
    if longest > _SOCKET_PATH_BYTES:
        raise MissingPrerequisite(
            f"The directory {run_dir} is {longest - _SOCKET_PATH_BYTES} bytes too long for the sockets in it.",
            remedy="Set a shorter 'run_dir' on that host.",
        )
    if user:
        try:
            pwd.getpwnam(user)
        except KeyError as error:
            raise MissingPrerequisite(
                f"There is no user '{user}' on this host.", remedy="Create the user, or change 'qemu_user'."
            ) from error


async def _make_run_dir(name: str, run_dir: Path, user: str) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    run_dir.chmod(0o700)
    if user:
        entry = pwd.getpwnam(user)
        os.chown(run_dir, entry.pw_uid, entry.pw_gid)
    if await _listens(run_dir / QMP_SOCKET):
        raise Conflict(f"A QEMU of {name} already answers in {run_dir}.")
    for socket in (QMP_SOCKET, CONSOLE_SOCKET):
        (run_dir / socket).unlink(missing_ok=True)
    log = run_dir / QEMU_LOG
    if log.exists():
        log.replace(log.with_suffix(".log.old"))


# 2 and 3. Cgroup and process, without systemd -------------------------------------------------------------------------

# Joins its cgroup before there is a QEMU, so that every thread and page is accounted there from the first on.
_JOIN_AND_EXEC = 'umask 077; if [ -n "$1" ]; then echo $$ >"$1/cgroup.procs" || exit 126; fi; shift; exec "$@"'


def _start_detached(name: str, argv: list[str], run_dir: Path, user: str, lease: Lease | None) -> QemuProcess:
    cgroup = _make_cgroup(name, run_dir)
    as_user = _as_user(user) if user else []
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _JOIN_AND_EXEC, "livemove", cgroup or "", *with_lease([*as_user, *argv], lease, "")],
        {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": "/"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, run_dir / QEMU_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM),
    )
    # Our child cannot have been collected yet, so the number is still its own even if it has ended.
    process = QemuProcess(name, pid, start_ticks(pid) or 0, cgroup, None)
    _collect_when_it_ends(process)
    return process


def _as_user(user: str) -> list[str]:
    """No capability is left to QEMU, and no program that it might execute could gain one."""
    who = [f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--init-groups"]
    return ["setpriv", *who, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]


def _collect_when_it_ends(process: QemuProcess) -> None:
    """No zombie is left while the agent lives; after it, QEMU is a child of init."""
    loop, pidfd = asyncio.get_running_loop(), os.pidfd_open(process.pid)

    def collect() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(process.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status)
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            _log.info("QEMU of %s (process %d) ended %s", process.name, process.pid, how)

    loop.add_reader(pidfd, collect)


def cgroup2_mount(mountinfo: str) -> Path | None:
    """Where cgroup2 is mounted, from the text of ``/proc/self/mountinfo``; None when it is not."""
    for line in mountinfo.splitlines():
        place, _, kind = line.partition(" - ")
        fields = place.split()
        if kind.startswith("cgroup2 ") and len(fields) > 4:
            # the kernel writes space, tab, newline and backslash as octal numbers
            return Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8) & 0x7F), fields[4]))
    return None


def cgroup_of(name: str, run_dir: Path) -> Path | None:
    """Where the VM's own cgroup is or would be, without systemd; None when there is no cgroup2.

    Its name holds a digest of `run_dir`, because two agents on one machine (a lab) may both have a VM of that name.
    """
    mount = cgroup2_mount(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    digest = hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:8]
    return mount / "livemove" / f"vm-{name}-{digest}" if mount is not None else None


def _make_cgroup(name: str, run_dir: Path) -> str | None:
    """The VM's own cgroup; None, with a warning, where there is no cgroup2 or it cannot be written."""
    cgroup = cgroup_of(name, run_dir)
    if cgroup is None:
        _log.warning("QEMU of %s stays in the agent's cgroup: no cgroup2 is mounted", name)
        return None
    try:
        with contextlib.suppress(FileNotFoundError):  # the last VM of another agent just removed the one above
            cgroup.mkdir(parents=True, exist_ok=True)
        cgroup.mkdir(parents=True, exist_ok=True)
        writable = os.access(cgroup / "cgroup.procs", os.W_OK)
    except OSError as error:
        _log.warning("QEMU of %s stays in the agent's cgroup: %s", name, error)
        return None
    if not writable:
        _log.warning("QEMU of %s stays in the agent's cgroup: %s cannot be written", name, cgroup)
        return None
    return str(cgroup)


# 2 and 3. With systemd ------------------------------------------------------------------------------------------------


def _systemd_serves_us() -> bool:
    try:
        same_network = Path("/proc/1/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except PermissionError:
        return False
    return same_network and Path("/run/systemd/system").is_dir() and shutil.which("systemd-run") is not None


#: What the agent's own unit leaves to it, and so to a QEMU that runs as the agent's user.
CAPABILITIES = "CAP_NET_ADMIN CAP_SYS_PTRACE CAP_KILL CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_IPC_LOCK"


def systemd_run_arguments(name: str, argv: list[str], run_dir: Path, *, user: str = "") -> list[str]:
    """What starts QEMU as a transient unit in a slice of its own. Tested as a table only: not yet tried under systemd."""
    log = run_dir / QEMU_LOG
    properties = {
        "KillMode": "mixed",
        "LimitMEMLOCK": "infinity",
        "LimitNOFILE": "65536",
        "OOMPolicy": "stop",
        "UMask": "0077",
        "NoNewPrivileges": "yes",
        "StandardInput": "null",
        "StandardOutput": f"append:{log}",
        "StandardError": f"append:{log}",
    }
    # the unit is a child of systemd, not of the agent, whose own bounds therefore do not hold for it
    properties |= {"User": user, "CapabilityBoundingSet": ""} if user else {"CapabilityBoundingSet": CAPABILITIES}
    return [
        "systemd-run",
        f"--unit={unit_name(name)}",
        "--slice=livemove.slice",
        f"--description=livemove VM {name}",
        "--collect",
        "--quiet",
        *(f"--property={key}={value}" for key, value in properties.items()),
        "--",
        *argv,
    ]


def unit_name(name: str) -> str:
    """The unit of a VM's QEMU."""
    return f"livemove-vm-{name}.service"


async def _start_by_systemd(name: str, argv: list[str], run_dir: Path, user: str, lease: Lease | None) -> QemuProcess:
    program = shutil.which(argv[0]) or argv[0]
    await _output_of(*systemd_run_arguments(name, with_lease([program, *argv[1:]], lease, user), run_dir, user=user))
    shown = await _output_of("systemctl", "show", "--property=MainPID", "--value", unit_name(name))
    pid = int(shown) if shown.isdecimal() else 0
    started = start_ticks(pid) if pid else None
    if started is None:
        raise QemuFailed(f"QEMU of {name} ended at once: {log_tail(run_dir) or 'it wrote nothing to its log'}")
    return QemuProcess(name, pid, started, None, unit_name(name))


async def _output_of(*command: str) -> str:
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await child.communicate()
    text = output.decode(errors="replace").strip()
    if child.returncode:
        raise QemuFailed(f"'{command[0]}' failed with status {child.returncode}: {text[-500:]}")
    return text


# 4. Waiting -----------------------------------------------------------------------------------------------------------


async def _until_it_answers(process: QemuProcess, run_dir: Path, start_timeout_s: float) -> None:
    answers = spawn(until_it_obeys(run_dir / QMP_SOCKET), name=f"start of {process.name}")
    ended = spawn(wait_gone(process), name=f"early end of {process.name}")
    try:
        await asyncio.wait({answers, ended}, timeout=start_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if answers.done():
            return await answers
        words = log_tail(run_dir) or "it wrote nothing to its log"
        if HELD in words:
            raise Conflict(
                f"Another QEMU holds the lease of VM '{process.name}': it runs already, here or on another host.",
                remedy="Find it with 'livemove vm list', and use or end it there.",
            )
        if "support requested feature" in words:
            raise CpuUnsupported(f"QEMU cannot give {process.name} its CPU model on this host: {words}")
        if ended.done():
            raise QemuFailed(f"QEMU of {process.name} ended at its start: {words}")
        raise QemuFailed(f"QEMU of {process.name} did not answer within {start_timeout_s:g} s of its start: {words}")
    finally:
        await cancel_and_wait(answers, ended)


async def _listens(socket: Path) -> bool:
    """Whether a QEMU is there; it greets one client only, so no greeting is waited for."""
    try:
        _, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
