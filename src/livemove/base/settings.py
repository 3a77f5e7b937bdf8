"""The settings of one host: typed, every field documented, kept in TOML.

``docs/settings.md`` is generated from the fields below, and ``livemove host show`` and ``host set`` work on all of them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from tomlkit.exceptions import TOMLKitError

from livemove.base.errors import BadSetting, LivemoveError
from livemove.base.units import parse_duration, parse_rate, parse_size

DEFAULT_CONFIG = Path("/etc/livemove/agent.toml")
DEFAULT_PORT = 7443
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class HostSettings(BaseModel):
    """Everything an administrator can set on one host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("localhost", description="The host's name in the cluster, as in its certificate.")
    listen: str = Field(f"0.0.0.0:{DEFAULT_PORT}", description="Address and port on which the agent answers.")
    state_dir: Path = Field(
        Path("/var/lib/livemove"),
        description="Directory of definitions, journal, history and certificates; must survive a reboot.",
    )
    run_dir: Path = Field(
        Path("/run/livemove"),
        description="Directory of sockets, logs of running VMs and keys of journeys; may vanish at a reboot.",
    )
    lease_dir: str = Field(
        "",
        description="Directory of the locks that VMs hold while they run; one that all hosts share, and that locks, binds them all. Empty: a directory of this host's own in run_dir.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much the agent logs to standard error."
    )
    qemu: str = Field("qemu-system-x86_64", description="The QEMU program that runs the VMs, by path or by name.")
    qemu_user: str = Field("", description="Unprivileged user that QEMU runs as; empty: the agent's own user.")
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        "auto", description="auto: KVM where it really runs a guest, else TCG."
    )
    migration_address: str = Field(
        "",
        description="Address that migrations use first, and the only one while 'incoming' is empty; empty: the address by which "
        "the cluster knows this host's agent comes first.",
    )
    incoming: tuple[str, ...] = Field(
        (),
        description="Addresses of this host that migrations may use, in either direction, or 'any'; empty: 'migration_address' "
        "where that is set, else any. 'livemove network incoming' sets it.",
    )
    paths: Literal["one", "all"] = Field(
        "one",
        description="Networks that an outgoing migration uses when the command does not say: the preferred one, or all that are allowed.",
    )
    nic_speeds: tuple[str, ...] = Field(
        (),
        description="What NICs carry where they do not say so or say it wrong, such as eth1=1Gbit; virtual NICs for example.",
    )
    mtu_fault: Literal["refuse", "clamp", "avoid"] = Field(
        "clamp",
        description="A path that loses packets of the size its NICs are set to: refuse the migration, use it with smaller packets, or leave it out.",
    )
    port_range: str = Field(
        "49152-49215",
        description="Ports for incoming migrations, first-last: TCP for the memory, UDP for what watches the paths.",
    )
    trusted_networks: tuple[str, ...] = Field(
        (),
        description="Networks (CIDR) on which migrations may go without TLS; a packet filter then admits the source only.",
    )
    simultaneous: int = Field(
        2,
        ge=1,
        le=64,
        description="Journeys at a time, outgoing and incoming counted separately; further ones wait in order.",
    )
    memory_reserve: str = Field("256MiB", description="Memory that incoming VMs must leave free on this host.")
    disk_reserve: str = Field(
        "16MiB",
        description="Space that the file systems of state_dir and run_dir must each have left for a journey to begin.",
    )
    max_bandwidth: str = Field(
        "",
        description="Highest rate of one outgoing migration, such as 8Gbit or 1000MB (per second); empty: what the link carries.",
    )
    channels: int = Field(0, ge=0, le=64, description="Connections a migration; 0: from link speed and cores.")
    option: Literal["auto", "tcp", "compression", "multichannel"] = Field(
        "auto", description="Performance option of outgoing migrations when the command names none."
    )
    compression_level: int = Field(1, ge=1, le=19, description="zstd level of compressed migrations.")
    downtime: str = Field("300ms", description="Longest downtime of a migration when the command names none.")
    deadline: str = Field(
        "",
        description="Longest time for a migration when the command names none, such as 10m; empty: while it makes progress.",
    )
    max_throttle: int = Field(
        80,
        ge=1,
        le=99,
        description="How far a migration that may throttle slows the guest down, in percent of its CPU time.",
    )
    verify: Literal["full", "sample", "off"] = Field(
        "off",
        description="How much of a VM's memory both hosts compare before the hand-over, when the command does not say.",
    )
    prepare_timeout: str = Field("60s", description="Longest time for the steps before the copy.")
    allowed_disk_dirs: tuple[str, ...] = Field(
        ("/",),
        description="Directories in which disks, kernels and firmware of VMs may lie that arrive here, or that operators "
        "define or start here; links and images behind images are followed. Admins may name files elsewhere.",
    )
    allowed_bridges: tuple[str, ...] = Field(
        ("*",), description="Bridges that VMs arriving here may be attached to; * admits all."
    )
    allow_extra_arguments: bool = Field(
        True, description="Whether definitions with extra QEMU arguments may be used here (by admins)."
    )
    history_days: int = Field(90, ge=1, le=3650, description="Days that reports of ended journeys are kept.")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("a host's name has letters, digits, '.', '_' and '-' only")
        return value

    @field_validator("memory_reserve", "disk_reserve")
    @classmethod
    def _size(cls, value: str) -> str:
        parse_size(value)
        return value

    @field_validator("max_bandwidth")
    @classmethod
    def _rate(cls, value: str) -> str:
        if value:
            parse_rate(value)
        return value

    @field_validator("downtime", "deadline", "prepare_timeout")
    @classmethod
    def _duration(cls, value: str, info: Any) -> str:
        if value or info.field_name != "deadline":
            parse_duration(value)
        return value

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        ipaddress.ip_address(host.strip("[]"))
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("write ADDRESS:PORT")
        return value

    @field_validator("migration_address")
    @classmethod
    def _address(cls, value: str) -> str:
        if value:
            ipaddress.ip_address(value)
        return value

    @field_validator("incoming")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return value if value == ("any",) else tuple(str(ipaddress.ip_address(address)) for address in value)

    @field_validator("nic_speeds")
    @classmethod
    def _speeds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            nic, equals, rate = entry.partition("=")
            if not equals or not nic or not parse_rate(rate):
                raise ValueError("write NIC=RATE, such as eth1=1Gbit")
        return value

    @field_validator("trusted_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    @field_validator("port_range")
    @classmethod
    def _ports(cls, value: str) -> str:
        first, dash, last = value.partition("-")
        if not (dash and first.isdecimal() and last.isdecimal() and 1024 <= int(first) <= int(last) < 65536):
            raise ValueError("write FIRST-LAST, both between 1024 and 65535")
        return value

    @property
    def admitted(self) -> tuple[str, ...]:
        """Addresses of this host that migrations may use, by ``incoming`` and ``migration_address``; empty: any."""
        if self.incoming:
            return () if self.incoming == ("any",) else self.incoming
        return (self.migration_address,) if self.migration_address else ()

    @property
    def speeds_bytes_per_s(self) -> dict[str, int]:
        """``nic_speeds`` by NIC."""
        return {nic: parse_rate(rate) for nic, _, rate in (entry.partition("=") for entry in self.nic_speeds)}

    @property
    def ports(self) -> range:
        """The ports of ``port_range``."""
        first, _, last = self.port_range.partition("-")
        return range(int(first), int(last) + 1)


def parse_settings(text: str, *, origin: str = "settings") -> HostSettings:
    """Settings from TOML text. Raises BadSetting naming the key, its value and what is allowed."""
    try:
        return HostSettings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadSetting(f"{origin} is not TOML: {error}.") from error
    except ValidationError as error:
        raise BadSetting(f"{origin}: {describe_validation(error)}") from error
    except LivemoveError as error:
        raise BadSetting(f"{origin}: {error.message}", remedy=error.remedy) from error


def load_settings(path: Path) -> HostSettings:
    """Settings from a file; defaults when there is none. Raises BadSetting, also when the file cannot be read."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return HostSettings.model_validate({})
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{path} cannot be read: {error}.") from error
    return parse_settings(text, origin=str(path))


def change_settings(path: Path, changes: dict[str, str]) -> HostSettings:
    """Set `changes` (name to text, as typed) in the file, keeping its comments; returns the new settings.

    Nothing is written unless the whole file is valid afterwards. Raises BadSetting.
    """
    load_settings(path)  # what is there already must be valid, else nobody knows what the change would mean
    document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
    try:
        for name, text in changes.items():
            document[name] = _typed(name, text)
        rendered = tomlkit.dumps(document)
    except (TOMLKitError, ValueError) as error:
        raise BadSetting(f"A new value cannot be written as TOML: {error}.") from error
    settings = parse_settings(rendered, origin="the changed settings")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w") as file:
        file.write(rendered)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return settings


def _typed(name: str, text: str) -> str | int | bool | list[str]:
    field = HostSettings.model_fields.get(name)
    if field is None:
        raise BadSetting(f"There is no setting '{name}'.")
    if field.annotation is bool:
        if text.lower() not in ("true", "false"):
            raise BadSetting(f"'{name}' is true or false, not '{text}'.")
        return text.lower() == "true"
    if field.annotation is int:
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise BadSetting(f"'{name}' is a whole number, not '{text}'.")
        return int(text)
    if isinstance(field.default, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def describe_validation(error: ValidationError) -> str:
    """pydantic's findings as one sentence for people."""
    parts = []
    for finding in error.errors(include_url=False, include_context=False)[:5]:
        where = ".".join(str(part) for part in finding["loc"]) or "input"
        if finding["type"] == "extra_forbidden":
            parts.append(f"unknown key '{where}'")
        else:
            parts.append(
                f"'{where}' is {str(finding.get('input'))[:60]!r}: {finding['msg'].removeprefix('Value error, ')}"
            )
    return "; ".join(parts) + "."
