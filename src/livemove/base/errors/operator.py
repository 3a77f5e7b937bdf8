"""The hosts are not as they must be; the remedy names what to mend."""

from __future__ import annotations

from livemove.base.errors.tree import OperatorError


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


class StateDamaged(OperatorError):
    """What the agent has on record cannot be read: damaged, or written by a newer version. It starts nothing then."""

    code, exit_code, remedy_text = (
        "state-damaged",
        35,
        "Install the version of livemove that wrote it, or put a copy of the database in its place; running VMs run on.",
    )


class LeaseMismatch(OperatorError):
    """The two hosts of a journey do not keep the locks of their VMs in the same place, so neither would see the other's."""

    code, exit_code, remedy_text = (
        "lease-mismatch",
        36,
        "Set 'lease_dir' on both hosts to one directory that they share, or on neither.",
    )


class NoCommonNetwork(OperatorError):
    """The two hosts have no network in common that both of them and the cluster's list let migrations use."""

    code, exit_code, remedy_text = (
        "no-common-network",
        37,
        "See 'livemove network list' and 'livemove plan'; allow a network, widen 'incoming', or mend the cable.",
    )


class MtuBlackHole(OperatorError):
    """A network loses packets of the size that both NICs are set to, and the setting keeps migrations off such networks."""

    code, exit_code, remedy_text = (
        "mtu-black-hole",
        38,
        "Set the MTU of the NICs on every switch between them, or the size that it carries on the NICs.",
    )
