"""The other side did not answer or said what it may not; QEMU said no or went away."""

from __future__ import annotations

from livemove.base.errors.tree import HypervisorError, LinkError, LivemoveError


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
        "Bring the other host back: it resolves itself when both agents speak. 'livemove resolve VM' shows what is known "
        "and what can be done.",
    )


class AgentBusy(LinkError):
    """The agent takes no more requests of this peer for the moment."""

    code, exit_code, remedy_text = "agent-busy", 43, "Ask less often; a second later the agent answers again."


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
