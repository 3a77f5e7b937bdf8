"""What agents and clients say to each other: the bodies of the HTTP API.

Every model forbids unknown keys and bounds its strings and lists, so that a peer cannot make the other side hold more than
is meant here. ``docs/api.md`` lists the routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from livemove.api.model_base import Document as Document
from livemove.api.model_base import Id as Id
from livemove.api.model_base import Model as Model
from livemove.api.model_base import Name as Name
from livemove.api.model_base import Text as Text
from livemove.api.model_base import Token as Token
from livemove.api.model_base import Word as Word
from livemove.api.network_models import LeftOutPath, NetworkRuleBody, PathReport, PathView
from livemove.policy.network_rules import MAX_RULES


class ErrorBody(Model):
    """The body of every answer that is not 2xx; see base/errors."""

    code: str
    exit_code: int
    message: str
    remedy: str
    where: str | None = None
    details: dict[str, Any] = {}


# VMs ------------------------------------------------------------------------------------------------------------------


class DefineVm(Model):
    """A definition as its author wrote it (TOML)."""

    text: Document


class VmView(Model):
    """One VM on one host.

    :param state: ``stopped``, ``running``, ``paused``, ``io-error``, ``guest-panicked``, ``shutdown``, ``moved``,
        ``arriving``, ``leaving`` or ``unknown`` (a hand-over is not resolved: nobody may start it).
    :param edited: the definition was changed since the start; the frozen one is what runs and what moves.
    """

    name: str
    host: str
    uuid: str = ""
    state: str
    accelerator: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    memory_backing: str = ""
    pid: int | None = None
    moved_to: str = ""
    journey: str = ""
    edited: bool = False
    definition: str = ""
    frozen: dict[str, Any] | None = None


class VmList(Model):
    vms: list[VmView]


class ConsoleInput(Model):
    """What is typed on a VM's console, as text."""

    text: Annotated[str, Field(max_length=4096)]


class ConsoleChunk(Model):
    """A part of a VM's console log, from byte `offset`; ask again with `next_offset`."""

    text: str
    next_offset: int


# Hosts ----------------------------------------------------------------------------------------------------------------


class HostView(Model):
    """What a host says of itself."""

    name: str
    livemove_version: str
    settings: dict[str, Any]
    qemu: dict[str, Any]
    memory_total_bytes: int
    memory_available_bytes: int
    memory_promised_bytes: int
    cores: int
    idle_cores: float
    certificate: dict[str, Any] = {}
    outgoing: list[str] = []
    outgoing_waiting: list[str] = []
    incoming: list[str] = []
    incoming_waiting: list[str] = []


class ChangeSettings(Model):
    """New values by setting name, as typed."""

    changes: Annotated[dict[Word, Text], Field(min_length=1, max_length=64)]


class LeftoverView(Model):
    """Something on a host that was made for a VM or a journey and belongs to nobody any more.

    :param kind: ``qemu``, ``cgroup``, ``tap``, ``socket``, ``directory``, ``filter``, ``keys``, ``reservation``,
        ``network`` or ``probe``.
    :param owner: the VM or journey that it was made for.
    :param since: when it was made or last changed; empty: unknown.
    :param kept: why it could not be removed; empty: nobody tried, or it is gone.
    """

    kind: str
    name: str
    owner: str
    reason: str
    since: str = ""
    kept: str = ""


class LeftoverList(Model):
    leftovers: list[LeftoverView]


# Journeys -------------------------------------------------------------------------------------------------------------


class AskGrant(Model):
    """A person asks the destination for its permission."""

    vm: Name
    vm_uuid: Id
    source: Name


class GrantAnswer(Model):
    token: Token


class JourneyOptions(Model):
    """What the caller may choose; None: the host's setting."""

    option: Literal["auto", "tcp", "compression", "multichannel"] | None = None
    paths: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """``one``, ``all``, or subnets and names of networks with commas between them."""
    downtime_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    deadline_s: Annotated[float, Field(gt=0, le=30 * 86400)] | None = None
    throttle: bool = False
    channels: Annotated[int, Field(ge=0, le=64)] | None = None
    max_bandwidth_bytes_per_s: Annotated[int, Field(gt=0)] | None = None
    verify: Literal["full", "sample", "off"] | None = None


class AskJourney(Model):
    """A person asks the source to move a VM.

    :param grant: the destination's; may be empty only for a dry run.
    :param dry_run: check everything, change nothing, answer with a plan.
    :param asked_monotonic_s: when the command was typed, by the monotonic clock of the boot `asked_boot_id`.
    """

    vm: Name
    destination: Name
    grant: Token
    options: JourneyOptions = JourneyOptions()
    dry_run: bool = False
    asked_monotonic_s: float | None = None
    asked_boot_id: Annotated[str, Field(max_length=64)] = ""


class NegotiatedRow(Model):
    """One line of the table of negotiated features (N19)."""

    feature: str
    source: bool
    destination: bool
    used: bool
    reason: str


class PlanView(Model):
    """What a journey would do."""

    vm: str
    source: str
    destination: str
    option: str
    option_reason: str
    engine: str
    channels: int
    compression: str
    tls: bool
    tls_reason: str
    migration_address: str
    paths: list[PathView] = []
    paths_left_out: list[LeftOutPath] = []
    memory_bytes: int
    downtime_s: float
    deadline_s: float | None
    max_bandwidth_bytes_per_s: int
    verify: Literal["full", "sample", "off"] = "off"
    negotiated: list[NegotiatedRow]
    notes: list[str] = []


class StepView(Model):
    """One of the ten steps; `ms` is None until it has ended."""

    step: int
    name: str
    state: Literal["waiting", "running", "done", "skipped", "failed"]
    ms: float | None = None


class ProgressView(Model):
    """The copy as it stands."""

    elapsed_s: float = 0.0
    round: int = 0
    total_bytes: int = 0
    remaining_bytes: int = 0
    transferred_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    wire_rate_bytes_per_s: float = 0.0
    dirty_bytes_per_s: float = 0.0
    eta_s: float | None = None
    downtime_forecast_s: float | None = None
    latch_s: float = 0.0
    throttle_percent: int = 0


class EventView(Model):
    """One event of a journey, on either host; `event_id` is the Hyper-V number where there is one (#110-#116)."""

    number: int
    at: str
    host: str
    level: str
    event_id: int | None
    correlation: str
    vm: str
    vm_uuid: str
    source: str
    destination: str
    text: str


class EventList(Model):
    events: list[EventView]


class JourneyView(Model):
    """A journey as its source (or destination) sees it now."""

    id: str
    vm: str
    vm_uuid: str
    role: Literal["source", "destination"]
    source: str
    destination: str
    phase: str
    owner: str
    terminal: bool
    person: str
    queue_place: int = 0
    option: str = ""
    steps: list[StepView] = []
    progress: ProgressView | None = None
    error: ErrorBody | None = None
    started: str = ""
    last_note: str = ""
    events_count: int = 0


class JourneyList(Model):
    journeys: list[JourneyView]


# Reports --------------------------------------------------------------------------------------------------------------


class LeftOutView(Model):
    """A part of the VM's memory that was not compared, and why."""

    name: str
    size_bytes: int
    reason: str


class VerificationView(Model):
    """The comparison of both hosts' memory between pause and resume.

    :param compared_bytes: what was read and hashed on both hosts; with ``sample`` a part of the blocks.
    :param ms: what it added to the downtime.
    :param different_pages: where they differ, ``block at 0xADDRESS``; the first ones only.
    :param explained: differences that loading the devices' state makes, which are none of the guest's.
    """

    mode: Literal["full", "sample"]
    result: Literal["same", "different", "not finished"]
    blocks: dict[str, int] = {}
    compared_bytes: int = 0
    left_out: list[LeftOutView] = []
    different_pages: list[str] = []
    explained: list[str] = []
    ms: float | None = None


class ReportView(Model):
    """What a journey did, for people and programs; kept in the history of both hosts."""

    id: str
    vm: str
    vm_uuid: str
    source: str
    destination: str
    person: str
    outcome: Literal["completed", "failed", "cancelled", "ended"]
    owner: str
    code: str
    reason: str
    remedy: str
    started: str
    ended: str
    option: str
    option_reason: str
    engine: str
    channels: int
    compression: str
    tls: bool
    memory_bytes: int
    total_ms: float
    copy_ms: float | None = None
    command_to_first_byte_ms: float | None = None
    downtime_qemu_ms: float | None = None
    downtime_ms: float | None = None
    downtime_client_ms: float | None = None
    blackout_parts_ms: Annotated[dict[Word, float], Field(max_length=64)] = {}
    steps: Annotated[list[StepView], Field(max_length=32)] = []
    rounds: int = 0
    wire_bytes: int = 0
    ram_bytes: int = 0
    normal_pages: int = 0
    zero_pages: int = 0
    page_bytes: int = 4096
    mean_rate_bytes_per_s: float = 0.0
    source_cpu_seconds: float = 0.0
    destination_cpu_seconds: float | None = None
    throttled_percent: int = 0
    arrived_as: str = ""
    paths: Annotated[list[PathReport], Field(max_length=256)] = []
    paths_left_out: Annotated[list[LeftOutPath], Field(max_length=256)] = []
    verification: VerificationView | None = None
    negotiated: Annotated[list[NegotiatedRow], Field(max_length=256)] = []
    decisions: Annotated[list[Text], Field(max_length=2000)] = []
    notes: Annotated[list[Text], Field(max_length=2000)] = []


class ReportList(Model):
    reports: list[ReportView]


class ClientBlackout(Model):
    """What a probe on the VM's network saw; added to the report by whoever ran the probe."""

    longest_gap_ms: Annotated[float, Field(ge=0, le=1e9)]


# Cluster --------------------------------------------------------------------------------------------------------------


class ClusterView(Model):
    """cluster_map.ClusterMap on the wire."""

    authority: Name
    serial: int
    hosts: Annotated[dict[Name, Annotated[str, Field(max_length=64)]], Field(max_length=1024)]
    networks: Annotated[tuple[NetworkRuleBody, ...], Field(max_length=MAX_RULES)] = ()
    revocations: Annotated[str, Field(max_length=524_288)] = ""
    """The authority's signed list of revoked certificates (CRL, PEM); empty when there is none."""


class RenewRequest(Model):
    """A host asks for a new certificate, over a connection with its present one."""

    signing_request: Annotated[str, Field(min_length=1, max_length=8192)]


class RenewAnswer(Model):
    certificate: Annotated[str, Field(min_length=1, max_length=16_384)]
