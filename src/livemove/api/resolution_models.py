"""What is said about a VM of which nobody knows who owns it: the evidence, and an operator's word on it."""

from __future__ import annotations

from pydantic import Field

from livemove.api.models import Id, Model, Name, Text


class ResolutionView(Model):
    """What one host knows of an unresolved hand-over.

    :param role: of this host in the journey, ``source`` or ``destination``.
    :param qemu: what this host's QEMU of the VM is doing, in words.
    :param has_all: this host could run the VM: it is the source and its QEMU lives, or it has loaded everything.
    :param other_answers: the other host's agent answered just now.
    :param if_other_is_dead: what this host would do on an operator's word that the other one is dead.
    :param done: what was done; empty when it was only asked about.
    """

    host: Name
    vm: Name
    vm_uuid: str = ""
    journey: Id
    role: str
    source: Name
    destination: Name
    phase: str
    owner: str
    qemu: Text
    has_all: bool
    other_answers: bool
    last_word: Text = ""
    if_other_is_dead: Text
    done: Text = ""


class DeclareDead(Model):
    """An operator's word that a host is fenced: it does not run the VM and will not before it has asked.

    :param paused: the VM is not to be resumed where it is taken over.
    """

    host: Name
    paused: bool = False
    dry_run: bool = False


class HoldingView(Model):
    """Whether a host has a VM that runs or may run.

    :param state: as in VmView; empty when the host has no such VM.
    """

    name: str = Field(default="", max_length=63)
    state: str = Field(default="", max_length=63)
