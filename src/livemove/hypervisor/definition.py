"""What a VM is, as an administrator writes it: a TOML file, typed, every key documented.

``docs/definition.md`` is generated from the fields below by :func:`definition_markdown`. A definition is only read when a
VM starts: :mod:`livemove.hypervisor.frozen` resolves it then, and a running VM is known by what it was resolved to.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from livemove.base.errors import BadDefinition, LivemoveError, NotMigratable
from livemove.base.settings import NAME, describe_validation
from livemove.base.units import MIB, parse_size

# A definition is typed by people; a larger text is a mistake and is not worth parsing.
MAX_TEXT_CHARS = 256 * 1024
# One PCI function each on the root bus; frozen.py has the map of slots.
MAX_NICS, MAX_PASSTHROUGH, MAX_DISKS = 8, 6, 15

_INTERFACE = re.compile(r"[^\s/:,]{1,15}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_MACHINE = re.compile(r"q35|pc|pc-(q35|i440fx)(-[0-9]+(\.[0-9]+){1,2})")
_CPU = re.compile(r"[A-Za-z0-9_.-]{1,64}(,[+-]?[A-Za-z0-9_.-]{1,64}(=[A-Za-z0-9_.-]{1,64})?){0,64}")
_SERIAL = re.compile(r"[A-Za-z0-9_.-]{0,20}")
_PCI = re.compile(r"([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")


def _plain(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it has control characters or other text that is no name")
    return value


def _absolute(value: str) -> str:
    if value and not value.startswith("/"):
        raise ValueError("write the path from the root (/...), because the agent has no working directory of yours")
    return _plain(value)


Text = Annotated[str, Field(max_length=4096), AfterValidator(_plain)]
AbsolutePath = Annotated[str, Field(max_length=4096), AfterValidator(_absolute)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cpu(_Section):
    """Processors of the guest."""

    count: int = Field(1, ge=1, le=288, strict=True, description="Number of virtual CPUs.")
    model: str = Field(
        "baseline",
        description="CPU model that the guest sees: 'baseline' (x86-64-v2 without anything that only some hosts have; runs under KVM on Intel and on AMD and under TCG), or a model of QEMU such as 'Cascadelake-Server-v5', with features after commas. 'host' and 'max' differ from host to host, so they need migratable = false.",
    )

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        if not _CPU.fullmatch(value):
            raise ValueError("write 'baseline' or a CPU model of QEMU")
        return value


class Memory(_Section):
    """Memory of the guest."""

    size: str = Field("1GiB", description="Size, in whole MiB.")
    backing: Literal["memfd", "private", "hugetlb"] = Field(
        "memfd",
        description="memfd: shared memory without a name (the default; engines that read pages beside QEMU need it); private: anonymous memory of QEMU alone; hugetlb: huge pages reserved by the administrator.",
    )
    hugepage_size: str = Field("2MiB", description="Size of a huge page when backing is hugetlb.")
    populate: bool = Field(
        False,
        strict=True,
        description="Whether all memory is allocated at the start instead of when it is first used: in the background with memfd and hugetlb, before the start with private.",
    )

    @model_validator(mode="after")
    def _sizes(self) -> Memory:
        if self.hugepage_bytes < 4096 or self.hugepage_bytes & (self.hugepage_bytes - 1):
            raise ValueError(f"hugepage_size is a power of two, such as 2MiB or 1GiB, not {self.hugepage_size}")
        unit = max(MIB, self.hugepage_bytes) if self.backing == "hugetlb" else MIB
        if self.size_bytes < 8 * MIB or self.size_bytes % unit:
            raise ValueError(f"size is at least 8MiB and a multiple of {unit // MIB}MiB, not {self.size}")
        if self.size_bytes > 1 << 46:
            raise ValueError("size is at most 64TiB")
        return self

    @property
    def size_bytes(self) -> int:
        return parse_size(self.size)

    @property
    def hugepage_bytes(self) -> int:
        return parse_size(self.hugepage_size)


class Boot(_Section):
    """A kernel given to QEMU directly; without it the firmware boots from the disks in their order."""

    kernel: AbsolutePath = Field("", description="Path of a kernel image; empty: the firmware boots from disk.")
    initrd: AbsolutePath = Field("", description="Path of an initial RAM disk for that kernel.")
    arguments: Text = Field("", description="Command line of that kernel, such as 'console=ttyS0'.")

    @model_validator(mode="after")
    def _kernel_first(self) -> Boot:
        if not self.kernel and (self.initrd or self.arguments):
            raise ValueError("initrd and arguments need a kernel")
        return self


class Uefi(_Section):
    """Files of the UEFI firmware."""

    code: AbsolutePath = Field(min_length=1, description="Path of the firmware image, opened read-only.")
    vars: AbsolutePath = Field(min_length=1, description="Path of the VM's own variable store, which the guest writes.")
    shared: bool = Field(
        False,
        strict=True,
        description="Whether the variable store lies on storage that all hosts see under the same path. A VM whose store is not shared runs, but cannot move.",
    )


class Disk(_Section):
    """A disk; the guest sees it as virtio-blk."""

    path: AbsolutePath = Field(min_length=1, description="Path of the image file or block device.")
    format: Literal["raw", "qcow2"] = Field("raw", description="Format of what lies there.")
    kind: Literal["file", "block"] = Field("file", description="file: an image; block: a device such as a LUN.")
    shared: bool = Field(
        True,
        strict=True,
        description="Whether all hosts see it under the same path. A VM with a local disk cannot move yet.",
    )
    cache: Literal["none", "directsync", "writeback", "writethrough", "unsafe"] = Field(
        "none",
        description="As QEMU calls it. none and directsync pass by the host's page cache, which a shared disk needs; the others do not.",
    )
    serial: str = Field("", description="Serial number that the guest reads, at most 20 letters and digits.")
    readonly: bool = Field(False, strict=True, description="Whether the guest may only read it.")

    @field_validator("serial")
    @classmethod
    def _serial(cls, value: str) -> str:
        if not _SERIAL.fullmatch(value):
            raise ValueError("at most 20 letters, digits, '.', '_' or '-'")
        return value


class Nic(_Section):
    """A network card, joined to a bridge of the host or to a tap that somebody else made."""

    bridge: str = Field("", description="Bridge that livemove joins it to, through a tap of its own.")
    tap: str = Field("", description="Existing tap to use instead; it must exist on every host.")
    mac: str = Field("", description="Hardware address; empty: made from the VM's name and kept.")
    model: Literal["virtio-net-pci", "e1000e", "e1000"] = Field(
        "virtio-net-pci", description="Card that the guest sees."
    )

    @model_validator(mode="after")
    def _one_end(self) -> Nic:
        if bool(self.bridge) == bool(self.tap):
            raise ValueError("give either bridge or tap")
        if not _INTERFACE.fullmatch(self.bridge or self.tap):
            raise ValueError(
                f"'{(self.bridge or self.tap)[:40]}' is no interface name (1 to 15 letters, no '/' or space)"
            )
        if self.mac and (not _MAC.fullmatch(self.mac) or int(self.mac[:2], 16) & 1):
            raise ValueError(f"'{self.mac[:40]}' is not the address of one card, such as 52:54:00:12:34:56")
        return self


class Passthrough(_Section):
    """A PCI device of the host, given to the guest. The VM cannot move, so it needs migratable = false."""

    host: str = Field(description="Address of the device on the host, such as 0000:3b:00.1.")

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        if not _PCI.fullmatch(value):
            raise ValueError("write a PCI address such as 0000:3b:00.1")
        return value


class Definition(_Section):
    """A VM as its administrator wants it."""

    name: str = Field(description="Name of the VM in the cluster: letters, digits, '.', '_' and '-', at most 63.")
    machine: str = Field(
        "q35", description="Machine type: q35, pc, or a versioned one such as pc-q35-8.2, which older QEMUs know too."
    )
    firmware: Literal["bios", "uefi"] = Field("bios", description="Firmware of the guest; uefi needs [uefi].")
    console: bool = Field(True, strict=True, description="Whether there is a serial console (ttyS0), logged to a file.")
    migratable: bool = Field(
        True, strict=True, description="false: the VM may have what cannot move, and is never migrated."
    )
    tpm: bool = Field(False, strict=True, description="A TPM; refused, because livemove cannot carry its state yet.")
    extra_arguments: tuple[Text, ...] = Field(
        (),
        max_length=256,
        description="Further arguments for QEMU, word by word, at source and destination alike. Only admins may use them.",
    )
    cpu: Cpu = Field(default=Cpu(), description="Processors.")
    memory: Memory = Field(default=Memory(), description="Memory.")
    boot: Boot = Field(default=Boot(), description="Kernel to boot directly.")
    uefi: Uefi | None = Field(None, description="UEFI firmware files.")
    disk: tuple[Disk, ...] = Field((), max_length=MAX_DISKS, description="Disks, in the order of booting.")
    nic: tuple[Nic, ...] = Field((), max_length=MAX_NICS, description="Network cards.")
    passthrough: tuple[Passthrough, ...] = Field(
        (), max_length=MAX_PASSTHROUGH, description="Devices of the host given to the guest."
    )

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("a VM's name has letters, digits, '.', '_' and '-' only, at most 63")
        return value

    @field_validator("machine")
    @classmethod
    def _machine(cls, value: str) -> str:
        if not _MACHINE.fullmatch(value):
            raise ValueError("write q35, pc, or a versioned type such as pc-q35-10.0")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Definition:
        if (self.firmware == "uefi") != (self.uefi is not None):
            raise ValueError("firmware = 'uefi' and the section [uefi] go together")
        files = [disk.path for disk in self.disk] + ([self.uefi.vars] if self.uefi else [])
        macs = [nic.mac.lower() for nic in self.nic if nic.mac]
        taps = [nic.tap for nic in self.nic if nic.tap]
        for what, values in (("file", files), ("mac", macs), ("tap", taps)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"the {what} {twice} is used twice")
        return self


def parse_definition(text: str, *, origin: str = "definition") -> Definition:
    """A definition from TOML text.

    :param origin: what the text is called in messages, such as its file's name.
    :raise BadDefinition: not TOML, unknown keys (the nearest known one is named), wrong types, or a combination that
        cannot run.
    :raise NotMigratable: it has a TPM, or something that cannot move without ``migratable = false``.
    """
    if len(text) > MAX_TEXT_CHARS:
        raise BadDefinition(f"{origin} has {len(text)} characters; a definition has at most {MAX_TEXT_CHARS}.")
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadDefinition(f"{origin} is not TOML: {error}.") from error
    try:
        definition = Definition.model_validate(data)
    except ValidationError as error:
        raise BadDefinition(f"{origin}: {describe_validation(error)}{_nearest(error)}") from error
    except LivemoveError as error:
        raise BadDefinition(f"{origin}: {error.message}", remedy=error.remedy) from error
    _refuse_what_cannot_move(definition, origin)
    return definition


def _refuse_what_cannot_move(definition: Definition, origin: str) -> None:
    if definition.tpm:
        raise NotMigratable(
            f"{origin}: livemove does not run TPMs yet, because a TPM's state would stay behind when the VM moves.",
            remedy="Remove 'tpm' from the definition.",
        )
    if not definition.migratable:
        return
    remedy = "Remove it, or set migratable = false for a VM that stays on its host."
    if definition.passthrough:
        host = definition.passthrough[0].host
        raise NotMigratable(f"{origin}: the passed-through device {host} cannot move to another host.", remedy=remedy)
    if definition.cpu.model.partition(",")[0] in ("host", "max"):
        raise NotMigratable(
            f"{origin}: cpu.model '{definition.cpu.model}' is another CPU on every host.",
            remedy="Use 'baseline' or a named model that all hosts have, or set migratable = false.",
        )


def _nearest(error: ValidationError) -> str:
    """Sentences that name, for each unknown key, the known key that is most like it."""
    sentences = []
    for finding in error.errors(include_url=False, include_context=False)[:5]:
        if finding["type"] != "extra_forbidden":
            continue
        model: type[BaseModel] = Definition
        *above, unknown = finding["loc"]
        for part in above:
            if isinstance(part, str):
                model = _section(model.model_fields[part]) or model
        known = sorted(model.model_fields)
        like = difflib.get_close_matches(str(unknown)[:64], known, n=1, cutoff=0.5)
        elsewhere = [dotted for dotted, field in _keys() if dotted.rpartition(".")[2] == unknown]
        if elsewhere:
            sentences.append(f" '{unknown}' belongs elsewhere: the nearest known key is '{elsewhere[0]}'.")
        elif like:
            sentences.append(f" The nearest known key to '{unknown}' is '{like[0]}'.")
        else:
            sentences.append(f" Known keys there are {', '.join(known)}.")
    return "".join(sentences)


def _section(field: FieldInfo) -> type[_Section] | None:
    """The section's class when the field is one (or a list of them), else None."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, _Section):
            return kind
    return None


def _keys(model: type[_Section] = Definition, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        below = _section(field)
        if below is None:
            yield prefix + name, field
        else:
            yield from _keys(below, f"{prefix}{name}.")


def definition_markdown() -> str:
    """The text of ``docs/definition.md``: every key with its values, default and meaning."""
    lines = [
        "# VM definitions\n",
        "A definition is a TOML file. Only `name` is compulsory. Unknown keys are refused. It is read when the VM starts:",
        "a running VM keeps what it was started with, wherever it moves, until it is started again.",
        "(Generated from the code by `python -m livemove.hypervisor.definition`.)\n",
        "```toml",
        _EXAMPLE.strip(),
        "```",
    ]

    def table(model: type[_Section]) -> None:
        lines.extend(["", "| key | values | default | meaning |", "|---|---|---|---|"])
        lines.extend(
            f"| `{name}` | {_values(field)} | {_default(field)} | {field.description} |"
            for name, field in model.model_fields.items()
            if _section(field) is None
        )

    lines.extend(["", "## Top level"])
    table(Definition)
    for name, field in Definition.model_fields.items():
        below = _section(field)
        if below is not None:
            many = isinstance(field.default, tuple)
            lines.extend(["", f"## `{f'[[{name}]]' if many else f'[{name}]'}`", "", f"{below.__doc__}"])
            if many:
                limit = next(item.max_length for item in field.metadata if hasattr(item, "max_length"))
                lines[-1] += f" Up to {limit} times."
            table(below)
    return "\n".join([*lines, ""])


def _values(field: FieldInfo) -> str:
    if choices := [value for value in get_args(field.annotation) if isinstance(value, str)]:
        return ", ".join(f"`{value}`" for value in choices)
    names: dict[Any, str] = {int: "number", bool: "true, false", str: "text"}
    return names.get(field.annotation, "list of texts")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(compulsory)"
    value = field.default
    if value in ("", ()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


_EXAMPLE = """
name = "web1"

[memory]
size = "4GiB"

[[disk]]
path = "/srv/shared/web1.qcow2"
format = "qcow2"

[[nic]]
bridge = "br0"
"""

if __name__ == "__main__":
    print(definition_markdown(), end="")
