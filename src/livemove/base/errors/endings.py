"""How a journey may end without having moved the VM; and livemove's own mistakes."""

from __future__ import annotations

from livemove.base.errors.tree import JourneyError, LivemoveError


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


class MemoryDiffers(JourneyError):
    """The destination's memory is not what the source sent, so the VM was not handed over; it runs on at the source."""

    code, exit_code, remedy_text = (
        "memory-differs",
        64,
        "Test the memory and the network of both hosts (memtester, ethtool -S) before moving VMs between them.",
    )


class GuestEnded(JourneyError):
    """The guest powered off while it was being moved; it is stopped on the source."""

    code, exit_code, remedy_text = "guest-ended", 63, "Start it again on the host of your choice."


class Bug(LivemoveError):
    """livemove itself is wrong."""

    code, exit_code, remedy_text = "bug", 1, "Please report it with the journey's report."
