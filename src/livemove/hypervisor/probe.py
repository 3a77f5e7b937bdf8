"""What the QEMU on this host can do, and whether KVM really runs a guest here.

QEMU is started once without a machine and asked over QMP; the answers are cached until the program changes or the host
boots again. ``/dev/kvm`` being there proves nothing (it may belong to a hypervisor that runs only some guests), so KVM
is believed only when a boot sector of ours has run under it: see :mod:`livemove.hypervisor.probe_guest`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from livemove.base.errors import MissingPrerequisite, QemuFailed, QemuTooOld
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor.greeting import until_it_obeys
from livemove.hypervisor.probe_guest import DIES_WITH_US, runs_a_guest
from livemove.hypervisor.qmp import Monitor

#: The remedy where there is none.
INSTALL_QEMU = "Install QEMU (on Debian the package qemu-system-x86), or set 'qemu' on that host."

# QEMU 7.2 under TCG loses dirty pages: 6 of 7 migrated guests arrived corrupted.
OLDEST_QEMU = (8, 2, 0)
# A cached answer of another version is asked for again.
FACTS_VERSION = 2
_START_LIMIT_S = 20.0
NO_SANDBOX = "QEMU or the kernel has no seccomp: VMs run without QEMU's sandbox. Set 'qemu_user' at least."

_log = logging.getLogger(__name__)


class QemuFacts(BaseModel):
    """What one QEMU program can do on this host, under one accelerator.

    :ivar accelerator_reason: a sentence for people: why this accelerator.
    :ivar machines: what the names without a version (q35, pc) mean here.
    :ivar cpu_models: those that the guest can have in full.
    :ivar capabilities: of migration, and `parameters` likewise.
    :ivar compressions: values of ``multifd-compression``.
    :ivar warnings: sentences for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    facts_version: int = FACTS_VERSION
    path: str
    version: tuple[int, int, int]
    package: str
    accelerator: Literal["kvm", "tcg"]
    accelerator_reason: str
    machines: dict[str, str]
    machine_types: frozenset[str]
    cpu_models: frozenset[str]
    capabilities: frozenset[str]
    parameters: frozenset[str]
    compressions: frozenset[str]
    has_tls_psk: bool
    has_mptcp: bool
    has_rdma: bool
    has_sandbox: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def version_text(self) -> str:
        return ".".join(str(number) for number in self.version)


async def probe_qemu(
    qemu: str, accelerator: str = "auto", *, cache_dir: Path | None = None, work_dir: Path | None = None
) -> QemuFacts:
    """The facts of the program `qemu` (a path, or a name in PATH) on this host.

    :param accelerator: ``auto`` takes KVM where it runs a guest, else TCG; ``kvm`` insists; ``tcg`` does not try.
    :param cache_dir: where answers are kept; None: ask each time.
    :param work_dir: where the files of the asking are, which go with it; None: the system's place for such.
    :raise MissingPrerequisite: there is no such program, or KVM is insisted on and does not run a guest.
    :raise QemuTooOld: older than 8.2, and the guest would run under TCG. Under KVM that is a warning.
    :raise QemuFailed: it does not start, or does not answer.
    """
    path = shutil.which(qemu)
    if path is None:
        raise MissingPrerequisite(f"The program '{qemu}' is not on this host.", remedy=INSTALL_QEMU)
    cache = cache_dir / f"qemu-facts-{_cache_key(path, accelerator)}.json" if cache_dir is not None else None
    if cache is not None and (cached := _read_cache(cache)) is not None:
        return cached
    if work_dir is not None:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        chosen, reason = await _choose_accelerator(path, accelerator, work_dir)
        facts = await _ask(path, chosen, reason, work_dir)
    finally:
        if work_dir is not None:
            with contextlib.suppress(OSError):  # what an agent that was killed left in it stays until its owner looks
                work_dir.rmdir()
    if facts.version < OLDEST_QEMU:
        too_old = f"QEMU {facts.version_text} ({path}) is older than 8.2"
        if chosen == "tcg":
            raise QemuTooOld(f"{too_old}, and loses memory pages of migrating guests under TCG.")
        facts = facts.model_copy(
            update={"warnings": (f"{too_old}, which livemove was not tried with.", *facts.warnings)}
        )
    if cache is not None:
        _write_cache(cache, facts)
    return facts


async def _choose_accelerator(path: str, wanted: str, work_dir: Path | None) -> tuple[Literal["kvm", "tcg"], str]:
    if wanted == "tcg":
        return "tcg", "TCG, as the host's settings ask."
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        runs, why = False, "/dev/kvm cannot be opened" if Path("/dev/kvm").exists() else "there is no /dev/kvm"
    else:
        runs, why = await runs_a_guest(path, "kvm", work_dir=work_dir)
    if runs:
        return "kvm", f"KVM: {why}."
    if wanted == "kvm":
        raise MissingPrerequisite(
            f"KVM does not run a guest on this host: {why}.",
            remedy="Enable virtualization in the firmware and load kvm_intel or kvm_amd, or set accelerator to auto.",
        )
    return "tcg", f"TCG, because {why}."


async def _ask(path: str, accelerator: Literal["kvm", "tcg"], reason: str, work_dir: Path | None) -> QemuFacts:
    with tempfile.TemporaryDirectory(prefix="qemu-", dir=work_dir) as directory:
        socket, log = Path(directory, "qmp"), Path(directory, "log")
        with log.open("wb") as output:  # noqa: ASYNC230  (a temporary file)
            # fmt: off
            child = await asyncio.create_subprocess_exec(
                *DIES_WITH_US, path, "-no-user-config", "-nodefaults", "-display", "none", "-machine", "none", "-accel", accelerator,
                "-S", "-chardev", f"socket,id=qmp,path={socket},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
            )
            # fmt: on
        ended = spawn(child.wait(), name="end of the QEMU that is asked")
        obeys = spawn(until_it_obeys(socket), name="start of the QEMU that is asked")
        try:
            # the socket's file is there a moment before QEMU listens on it
            await asyncio.wait({obeys, ended}, timeout=_START_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise QemuFailed(f"{path} does not start: {log.read_text(errors='replace').strip()[-500:]}")
            if not obeys.done():
                raise QemuFailed(f"{path} did not answer within {_START_LIMIT_S:g} s.")
            monitor = await Monitor.connect(socket, name="probe")
            try:
                facts = await _facts_of(monitor, path, accelerator, reason, Path(f"/proc/{child.pid}/maps"))
            finally:
                await monitor.close()
            return facts
        finally:
            if not ended.done():
                child.kill()
                await child.wait()
            await cancel_and_wait(obeys, ended)


async def _facts_of(
    monitor: Monitor, path: str, accelerator: Literal["kvm", "tcg"], reason: str, maps: Path
) -> QemuFacts:
    version = await monitor.execute("query-version")
    machines = await monitor.execute("query-machines")
    cpus = await monitor.execute("query-cpu-definitions")
    capabilities = await monitor.execute("query-migrate-capabilities")
    credentials = await monitor.execute("qom-list-types", {"implements": "tls-creds", "abstract": False})
    schema = Schema(await monitor.execute("query-qmp-schema"))
    number = version["qemu"]
    sandbox = await _has_sandbox(monitor)
    return QemuFacts(
        path=path,
        version=(number["major"], number["minor"], number["micro"]),
        package=version["package"],
        accelerator=accelerator,
        accelerator_reason=reason,
        machines={machine["alias"]: machine["name"] for machine in machines if "alias" in machine},
        machine_types=frozenset(machine["name"] for machine in machines),
        cpu_models=frozenset(cpu["name"] for cpu in cpus if not cpu.get("unavailable-features")),
        capabilities=frozenset(item["capability"] for item in capabilities),
        parameters=schema.argument_names("migrate-set-parameters"),
        compressions=schema.argument_values("migrate-set-parameters", "multifd-compression"),
        has_tls_psk=any(kind["name"] == "tls-creds-psk" for kind in credentials),
        has_mptcp=schema.has_member("mptcp"),
        # the schema lists RDMA even in a QEMU built without it, so look for the library that a build with it loads
        has_rdma=schema.has_value("rdma") and "librdmacm" in maps.read_text(errors="replace"),
        has_sandbox=sandbox,
        warnings=() if sandbox else (NO_SANDBOX,),
    )


async def _has_sandbox(monitor: Monitor) -> bool:
    """Whether this QEMU was built with seccomp and the kernel has it; only a build with it knows the option."""
    if not Path("/proc/sys/kernel/seccomp").is_dir():
        return False
    try:
        return bool(await monitor.execute("query-command-line-options", {"option": "sandbox"}))
    except QemuFailed:
        return False


class Schema:
    """What ``query-qmp-schema`` returned."""

    def __init__(self, entries: list[Mapping[str, Any]]) -> None:
        self._entries = entries
        self._types = {entry["name"]: entry for entry in entries if entry["meta-type"] != "command"}
        self._commands = {entry["name"]: entry for entry in entries if entry["meta-type"] == "command"}

    def _arguments(self, command: str) -> list[Mapping[str, Any]]:
        entry = self._commands.get(command)
        return list(self._types[entry["arg-type"]].get("members", [])) if entry else []

    def argument_names(self, command: str) -> frozenset[str]:
        """Names of the arguments of a command; none when there is no such command."""
        return frozenset(member["name"] for member in self._arguments(command))

    def argument_values(self, command: str, argument: str) -> frozenset[str]:
        """Values that an argument of enumerated type can have; none when there is no such argument."""
        for member in self._arguments(command):
            if member["name"] == argument:
                return frozenset(_values(self._types[member["type"]]))
        return frozenset()

    def has_member(self, name: str) -> bool:
        """Whether any structure has a member of that name."""
        return any(
            member["name"] == name
            for entry in self._entries
            if entry["meta-type"] == "object"
            for member in entry["members"]
        )

    def has_value(self, name: str) -> bool:
        """Whether any enumeration has that value."""
        return any(name in _values(entry) for entry in self._entries if entry["meta-type"] == "enum")


def _values(enumeration: Mapping[str, Any]) -> list[str]:
    # `members` (since 6.2) replaces `values`
    return [str(member["name"]) for member in enumeration.get("members", [])] or list(enumeration.get("values", []))


def _cache_key(path: str, accelerator: str) -> str:
    program = Path(path).stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    # a module loaded, or a permission changed, may bring KVM without a boot
    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    words = (FACTS_VERSION, path, program.st_mtime_ns, program.st_size, accelerator, boot, kvm)
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _read_cache(cache: Path) -> QemuFacts | None:
    try:
        facts = QemuFacts.model_validate_json(cache.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.warning("the stored facts %s are unreadable and asked for again: %s", cache, error)
        return None
    return facts if facts.facts_version == FACTS_VERSION else None


def _write_cache(cache: Path, facts: QemuFacts) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(f".{os.getpid()}.new")
        temporary.write_text(facts.model_dump_json(indent=1))
        temporary.replace(cache)
    except OSError as error:
        _log.warning("the facts of QEMU could not be stored in %s: %s", cache, error)
