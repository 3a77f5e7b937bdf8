"""What the agents of two hosts say to each other about a journey between them; see models.py for what holds of all bodies."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from livemove.api.models import Document, Id, Model, Name, Token


class OfferBody(Model):
    """policy.transport.Offer on the wire."""

    version: tuple[int, int, int]
    accelerator: str
    capabilities: Annotated[list[str], Field(max_length=256)]
    parameters: Annotated[list[str], Field(max_length=256)]
    compressions: Annotated[list[str], Field(max_length=32)]
    tls_psk: bool
    cores: int
    idle_cores: float
    link_bytes_per_s: int


class AskIncoming(Model):
    """The source presents the destination's grant and asks for a slot."""

    journey: Id
    vm: Name
    vm_uuid: Id
    grant: Token


class IncomingAnswer(Model):
    """Where the journey is at the destination; `place` > 0: it waits for a slot there."""

    phase: str
    place: int = 0


class AskFitness(Model):
    """The frozen definition, and the newer text if it was edited since the start."""

    frozen: Document
    definition: Document
    source_accelerator: str


class FitnessAnswer(Model):
    """What the destination can do; it has reserved the memory unless this was a dry run."""

    offer: OfferBody
    migration_address: str
    trusted_networks: list[str]
    notes: tuple[str, ...] = ()


class BuildAnswer(Model):
    """The skeleton runs; `probe_port` is where our own listener waits for the source's probe."""

    probe_port: int
    probe_nonce: str
    qemu_ms: float


class AskListen(Model):
    """What the destination's QEMU is set to, and the key of this journey (empty: no TLS)."""

    capabilities: Annotated[list[str], Field(max_length=64)]
    parameters: dict[Annotated[str, Field(max_length=64)], int | str | bool]
    psk_hex: Annotated[str, Field(max_length=128)]
    source_address: Annotated[str, Field(max_length=64)]


class ListenAnswer(Model):
    address: str
    port: int


class AskGo(Model):
    """The ownership passes with this request."""

    resume: bool


class OwnershipAnswer(Model):
    """The destination's word, as journaled; `owned` false is binding."""

    owned: bool
    running: bool = False
    reason: str = ""
    journal_ms: float = 0.0
    resume_ms: float = 0.0


class DestinationFacts(Model):
    """For the report, after the hand-over."""

    cpu_seconds: float
    agent_cpu_seconds: float
    vm_state: str
