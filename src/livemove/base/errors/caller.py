"""The command or its input was wrong; nothing was changed."""

from __future__ import annotations

from livemove.base.errors.tree import CallerError


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
