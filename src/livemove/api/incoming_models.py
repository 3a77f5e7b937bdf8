"""What the agents of two hosts say to each other about a journey between them; see models.py for what holds of all bodies."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from livemove.api.model_base import Document, Id, Model, Name, Text, Token, Word
from livemove.api.network_models import Address, Bytes, HostNetworksBody, PathPair


class OfferBody(Model):
    """policy.transport.Offer on the wire."""

    version: tuple[int, int, int]
    accelerator: Word
    capabilities: Annotated[list[Word], Field(max_length=256)]
    parameters: Annotated[list[Word], Field(max_length=256)]
    compressions: Annotated[list[Word], Field(max_length=32)]
    tls_psk: bool
    cores: int
    idle_cores: float
    link_bytes_per_s: int
    no_mptcp: Word = ""


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
    source_accelerator: Word
    lease_domain: Annotated[str, Field(max_length=64)] = ""


class FitnessAnswer(Model):
    """What the destination can do; it has reserved the memory unless this was a dry run.

    :param limited: it has limits of bandwidth, and tells the source during the copy how much it can take.
    """

    offer: OfferBody
    networks: HostNetworksBody
    limited: bool = False
    trusted_networks: Annotated[list[Word], Field(max_length=256)]
    notes: Annotated[tuple[Text, ...], Field(max_length=64)] = ()


class AskBuild(Model):
    """The paths that the source means to use, spares included: where the destination waits for its probes."""

    paths: Annotated[list[PathPair], Field(min_length=1, max_length=64)]


class BuildAnswer(Model):
    """The skeleton runs; at `probe_port` of every path's address our own listeners wait, TCP and UDP, for the source."""

    probe_port: int
    probe_nonce: str
    qemu_ms: float


def _no_tiny_packets(mtu: int) -> int:
    if 0 < mtu < 576:
        raise ValueError("packets of 576 bytes pass every network (RFC 791)")
    return mtu


class ListenPath(PathPair):
    """A path that is used.

    :param clamp_mtu: packets of this size at the most are sent on it; 0: as the NIC is set.
    :param dead: it does not work now, and is taken up when it does.
    """

    clamp_mtu: Annotated[int, Field(ge=0, le=65535), AfterValidator(_no_tiny_packets)] = 0
    dead: bool = False


class AskListen(Model):
    """What the destination's QEMU is set to, and the key of this journey (empty: no TLS).

    :param heartbeat_key: 32 hexadecimal digits: heartbeats go over the paths, by a keeper on each host, that nobody without
        this key can forge; empty: none do.
    """

    capabilities: Annotated[list[Word], Field(max_length=64)]
    parameters: Annotated[dict[Word, int | Word | bool], Field(max_length=32)]
    psk_hex: Annotated[str, Field(max_length=128)]
    paths: Annotated[list[ListenPath], Field(min_length=1, max_length=64)]
    mptcp: bool = False
    heartbeat_key: Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")] = ""


class ListenAnswer(Model):
    """QEMU listens.

    :param notes: sentences for the report.
    """

    port: int
    notes: Annotated[tuple[Text, ...], Field(max_length=64)] = ()


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


class PathTotals(Model):
    """What the destination's kernel counted on one pair of addresses; see network_models.PathReport."""

    source_address: Address
    destination_address: Address
    received_bytes: Bytes
    subflows: int = 0
    planned: bool = True
    longest_silence_ms: float | None = None


class DestinationFacts(Model):
    """For the report, after the hand-over."""

    cpu_seconds: float
    agent_cpu_seconds: float
    vm_state: str
    paths: Annotated[list[PathTotals], Field(max_length=256)] = []


# Verification ---------------------------------------------------------------------------------------------------------

BlockName = Annotated[str, Field(min_length=1, max_length=255)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BlockLeftOut(Model):
    """A RAM block that cannot be compared, and why."""

    name: BlockName
    size_bytes: Bytes
    reason: Annotated[str, Field(max_length=512)]


class MemoryOpened(Model):
    """The destination has its QEMU's memory open for reading.

    :param blocks: bytes by name that can be read.
    :param rate_bytes_per_s: how fast it reads and hashes them, with all its cores.
    """

    blocks: Annotated[dict[BlockName, Bytes], Field(max_length=256)]
    left_out: Annotated[tuple[BlockLeftOut, ...], Field(max_length=256)] = ()
    rate_bytes_per_s: Annotated[float, Field(gt=0, le=1e15)]


class AskDigests(Model):
    """What to digest: the first bytes of each block, or the sample of them that follows from `seed_hex`.

    :param sample: pieces of the sample; 0: everything.
    """

    blocks: Annotated[dict[BlockName, Bytes], Field(min_length=1, max_length=256)]
    sample: Annotated[int, Field(ge=0, le=4096)] = 0
    seed_hex: Annotated[str, Field(max_length=64, pattern=r"^([0-9a-f]{2})*$")] = ""


class DigestsAnswer(Model):
    """The digest of each block that was asked for."""

    digests: Annotated[dict[BlockName, Digest], Field(max_length=256)]


class AskPieces(Model):
    """Digests of pieces of one block, to find what differs in it."""

    block: BlockName
    piece_bytes: Annotated[int, Field(ge=4096, le=1 << 42)]
    offsets: Annotated[list[Bytes], Field(min_length=1, max_length=256)]


class PiecesAnswer(Model):
    digests: Annotated[list[Digest], Field(max_length=256)]


class AskPage(Model):
    """One page that differs, to see whether loading the devices' state changed it."""

    block: BlockName
    offset: Bytes


class PageAnswer(Model):
    hex: Annotated[str, Field(max_length=8192, pattern=r"^([0-9a-f]{2})*$")]
