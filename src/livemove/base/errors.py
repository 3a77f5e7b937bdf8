"""Every error livemove raises on purpose, by who must act.

    LivemoveError
    |-- CallerError       the command or its input was wrong; nothing was changed
    |-- OperatorError     the hosts are not as they must be; the remedy names what to mend
    |-- LinkError         the other side did not answer; trying again may help
    |-- HypervisorError   QEMU said no, or went away
    |-- JourneyError      the end of a journey that did not move the VM
    |-- PeerViolation     the other side said something that the protocol does not allow
    `-- Bug               livemove itself is wrong

A class has a stable ``code`` (in JSON, events and docs), an ``exit_code`` of its own and a ``remedy``; an instance may
give a more exact remedy. ``docs/errors.md`` is generated from this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class LivemoveError(Exception):
    """What happened, where, and what to do.

    :param message: one sentence, naming the thing that is wrong and the values that show it.
    :param remedy: what the reader can do; the class's own remedy when not given.
    :param where: the host on which it happened, when that is not obvious.
    :param details: further facts for JSON output (plain values only).
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    remedy_text: ClassVar[str] = "See the agent's log on the named host."

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        where: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy if remedy is not None else self.remedy_text
        self.where = where
        self.details: dict[str, Any] = dict(details or {})

    def to_json(self) -> dict[str, Any]:
        """The form in which an error crosses the API and appears under ``--json``."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
            "remedy": self.remedy,
            "where": self.where,
            "details": self.details,
        }


def error_from_json(data: Mapping[str, Any]) -> LivemoveError:
    """The error that :meth:`LivemoveError.to_json` described; unknown codes become a plain :class:`LivemoveError`."""
    kind = by_code().get(str(data.get("code")), LivemoveError)
    details = data.get("details")
    return kind(
        str(data.get("message", "no message"))[:4000],
        remedy=str(data["remedy"])[:4000] if data.get("remedy") is not None else None,
        where=str(data["where"]) if data.get("where") else None,
        details=details if isinstance(details, Mapping) else None,
    )


def every_error() -> Iterator[type[LivemoveError]]:
    """Every error class that has a code of its own, by exit code."""

    def below(kind: type[LivemoveError]) -> Iterator[type[LivemoveError]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    yield from sorted((kind for kind in below(LivemoveError) if "code" in vars(kind)), key=lambda kind: kind.exit_code)


def by_code() -> dict[str, type[LivemoveError]]:
    return {kind.code: kind for kind in every_error()}


class CallerError(LivemoveError):
    """The command or its input was wrong; nothing was changed."""


class OperatorError(LivemoveError):
    """The hosts are not as they must be; nothing was moved."""


class LinkError(LivemoveError):
    """The other side did not answer."""


class HypervisorError(LivemoveError):
    """QEMU refused a command or went away."""


class JourneyError(LivemoveError):
    """A journey ended without moving the VM."""


# Caller ---------------------------------------------------------------------------------------------------------------


class UnknownVm(CallerError):
    """No host that answered has a VM of that name."""

    code, exit_code, remedy_text = "unknown-vm", 10, "List the VMs with 'livemove vm list'."


class UnknownHost(CallerError):
    """The cluster has no host of that name."""

    code, exit_code, remedy_text = "unknown-host", 11, "List the hosts with 'livemove cluster hosts'."


class SameHost(CallerError):
    """Source and destination are the same host."""

    code, exit_code, remedy_text = "same-host", 12, "Name another host with --to."


class AlreadyMoving(CallerError):
    """The VM has a journey that has not ended."""

    code, exit_code, remedy_text = (
        "already-moving",
        13,
        "Watch it with 'livemove status', or end it with 'livemove cancel VM'.",
    )


class NotRunning(CallerError):
    """The VM has no QEMU process, and the command needs one."""

    code, exit_code, remedy_text = "not-running", 14, "Start it with 'livemove vm start VM'."


class BadDefinition(CallerError):
    """A VM definition has unknown keys, wrong types or a combination that cannot run."""

    code, exit_code, remedy_text = "bad-definition", 15, "Correct the definition; docs/definition.md lists every key."


class BadSetting(CallerError):
    """A setting has no such name, or a value outside its range."""

    code, exit_code, remedy_text = (
        "bad-setting",
        16,
        "'livemove host show' lists the settings; docs/settings.md explains them.",
    )


class BadQuantity(CallerError):
    """A size, rate or duration without a unit, or not a number."""

    code, exit_code, remedy_text = "bad-quantity", 17, "Write a number and a unit, such as 512MiB, 8Gbit or 300ms."


class Conflict(CallerError):
    """The command does not fit the present state of the VM or host."""

    code, exit_code, remedy_text = "conflict", 18, "'livemove vm show VM' tells the present state."


class UnknownJourney(CallerError):
    """No journey of that id or VM is on record."""

    code, exit_code, remedy_text = "unknown-journey", 19, "'livemove status --all' lists the journeys on record."


# Operator -------------------------------------------------------------------------------------------------------------


class NotEnoughMemory(OperatorError):
    """The host cannot hold the VM's memory beside what it already promised."""

    code, exit_code, remedy_text = (
        "not-enough-memory",
        20,
        "Free memory on that host, choose another one, or lower 'memory_reserve'.",
    )


class CpuUnsupported(OperatorError):
    """The host cannot give the guest the CPU model that it was started with."""

    code, exit_code, remedy_text = (
        "cpu-unsupported",
        21,
        "Choose a host with that CPU, or restart the VM with an older 'cpu.model'.",
    )


class QemuTooOld(OperatorError):
    """The host's QEMU is older than livemove accepts, or lacks the VM's machine type."""

    code, exit_code, remedy_text = "qemu-too-old", 22, "Install a newer QEMU on that host (8.2 at least)."


class DiskUnreachable(OperatorError):
    """A disk of the VM is not there, or not the same one, on that host."""

    code, exit_code, remedy_text = (
        "disk-unreachable",
        23,
        "Mount or export the storage on that host under the same path.",
    )


class PortClosed(OperatorError):
    """The migration port cannot be reached from the source."""

    code, exit_code, remedy_text = (
        "port-closed",
        24,
        "Open the ports of 'port_range' on the destination for the source's address.",
    )


class MigrationBlocked(OperatorError):
    """QEMU says that this VM cannot be migrated now."""

    code, exit_code, remedy_text = (
        "migration-blocked",
        25,
        "Remove the device that the message names, or stop the VM and start it there.",
    )


class NetworkMissing(OperatorError):
    """A bridge that the VM needs is not on that host, or a tap could not be made."""

    code, exit_code, remedy_text = (
        "network-missing",
        26,
        "Create the bridge on that host, or change the VM's definition.",
    )


class NotPermitted(OperatorError):
    """The certificate's role, the grant or the peer does not allow this."""

    code, exit_code, remedy_text = (
        "not-permitted",
        27,
        "Use a certificate whose role allows it: operator to move VMs, admin to change hosts.",
    )


class HugePagesMissing(OperatorError):
    """The host has too few free huge pages of the size that the VM uses."""

    code, exit_code, remedy_text = "hugepages-missing", 28, "Reserve huge pages on that host (vm.nr_hugepages)."


class UnsafeDisk(OperatorError):
    """A disk's cache mode could lose writes when the VM moves."""

    code, exit_code, remedy_text = "unsafe-disk", 29, 'Use cache = "none" or "directsync" for shared disks.'


class NotMigratable(OperatorError):
    """The definition has something that cannot move to another host."""

    code, exit_code, remedy_text = (
        "not-migratable",
        30,
        "Remove it from the definition, restart the VM, and migrate then.",
    )


class PolicyRefused(OperatorError):
    """The destination's own policy does not accept this definition."""

    code, exit_code, remedy_text = (
        "policy-refused",
        31,
        "Allow it on the destination with 'livemove host set', or change the definition.",
    )


class MissingPrerequisite(OperatorError):
    """A program, kernel feature or right that livemove needs is not there."""

    code, exit_code, remedy_text = "missing-prerequisite", 32, "Run 'make setup', or install what the message names."


class NoIdentity(OperatorError):
    """This user or host has no certificate of a cluster."""

    code, exit_code, remedy_text = (
        "no-identity",
        33,
        "Run 'livemove cluster init' on the first host and 'livemove cluster join' on the others.",
    )


class StateUnwritable(OperatorError):
    """The agent's state directory cannot be written: disk full or read-only."""

    code, exit_code, remedy_text = "state-unwritable", 34, "Free space in the state directory or mount it writable."


# Link, hypervisor, peer -----------------------------------------------------------------------------------------------


class AgentUnreachable(LinkError):
    """The agent of a host does not answer."""

    code, exit_code, remedy_text = (
        "agent-unreachable",
        40,
        "Start it with 'systemctl start livemove-agent' on that host, and check the address and port.",
    )


class LinkLost(LinkError):
    """The connection broke while a VM was being copied."""

    code, exit_code, remedy_text = "link-lost", 41, "Check the network between the hosts and run the command again."


class OutcomeUnknown(LinkError):
    """The hand-over was under way when the other host stopped answering; nobody may start the VM until it is known."""

    code, exit_code, remedy_text = (
        "outcome-unknown",
        42,
        "Bring the other host back; the journey resolves itself when both agents speak.",
    )


class QemuFailed(HypervisorError):
    """QEMU refused a command or did not start."""

    code, exit_code, remedy_text = (
        "qemu-failed",
        50,
        "The message is QEMU's own; the VM's log on that host has the rest.",
    )


class QemuGone(HypervisorError):
    """A QEMU process ended unexpectedly."""

    code, exit_code, remedy_text = "qemu-gone", 51, "The VM's log on that host tells why."


class PeerViolation(LivemoveError):
    """The other side said something that the protocol does not allow."""

    code, exit_code, remedy_text = "peer-violation", 52, "Check that both hosts run the same version of livemove."


# How a journey may end ------------------------------------------------------------------------------------------------


class JourneyFailed(JourneyError):
    """The journey failed; the VM runs on at the source."""

    code, exit_code, remedy_text = (
        "journey-failed",
        60,
        "'livemove report' tells what failed; the command may be repeated.",
    )


class JourneyCancelled(JourneyError):
    """The journey was cancelled; the VM runs on at the source."""

    code, exit_code, remedy_text = "journey-cancelled", 61, "Repeat the command when you want to move the VM."


class DeadlinePassed(JourneyError):
    """The VM could not be moved within the deadline and the allowed downtime; it runs on at the source."""

    code, exit_code, remedy_text = "deadline-passed", 62, "Allow more downtime, a longer deadline, or --throttle."


class GuestEnded(JourneyError):
    """The guest powered off while it was being moved; it is stopped on the source."""

    code, exit_code, remedy_text = "guest-ended", 63, "Start it again on the host of your choice."


class Bug(LivemoveError):
    """livemove itself is wrong."""

    code, exit_code, remedy_text = "bug", 1, "Please report it with the journey's report."
