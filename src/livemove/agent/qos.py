"""Marks and hardware classes of a host: what was asked for, put on its NICs, kept over a reboot, and taken back.

On record (qos.json in the state directory) are the wish and, before anything is changed, what each NIC was set to. Marks
are the governor's business, while journeys run; classes in the hardware are there as long as the wish is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from livemove.api.model_base import Model, Word
from livemove.api.qos_models import DcbBody, Priority, QosNic, QosView, QosWishBody, dcb_body, wish_body
from livemove.base.errors import BadSetting, LivemoveError, StateDamaged, StateUnwritable
from livemove.base.settings import HostSettings
from livemove.network.dcb import Command, carry_out, dcb_commands, read_dcb, read_vlan_marks, vlan_commands
from livemove.network.links import read_links
from livemove.policy.paths import LinkFacts
from livemove.policy.qos import DcbState, Marking, QosWish, check_wish, wanted_state

_log = logging.getLogger(__name__)

FILE = "qos.json"


class _Record(Model):
    """What was asked for, and what NICs were set to before.

    :param hardware: NICs that queue by priority themselves, and bonds of such NICs.
    """

    wish: QosWishBody
    dcb: Annotated[dict[Word, DcbBody], Field(max_length=1024)]
    vlans: Annotated[dict[Word, dict[int, Priority]], Field(max_length=1024)]
    hardware: Annotated[tuple[Word, ...], Field(max_length=1024)]


@dataclass(frozen=True, slots=True)
class _Nic:
    """A NIC as it is now.

    :param link: the bond that it belongs to, else itself.
    """

    name: str
    link: str
    networks: tuple[str, ...]
    dcb: DcbState | None
    vlan: dict[int, int] | None


@dataclass(slots=True)
class _Work:
    """What is to be done, what undoes it, and what was there before."""

    commands: list[Command] = field(default_factory=list)
    undo: list[Command] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dcb: dict[str, DcbBody] = field(default_factory=dict)
    vlans: dict[str, dict[int, int]] = field(default_factory=dict)


class Qos:
    """One per agent. Raises StateDamaged when the record is not what was written."""

    def __init__(self, settings: Callable[[], HostSettings]) -> None:
        self._settings = settings
        self._path = settings().state_dir / FILE
        self._record = _read(self._path)

    @property
    def marking(self) -> Marking:
        """How journeys' packets are marked now."""
        if self._record is None:
            return Marking()
        wish = self._record.wish
        return Marking(wish.dscp, wish.priority, frozenset(self._record.hardware))

    async def view(self) -> QosView:
        """What was asked for and what is. Raises MissingPrerequisite when the links cannot be listed."""
        return self._view(await self._nics(), _Work())

    async def apply(self, wish: QosWish, *, dry_run: bool) -> QosView:
        """Mark journeys and set NICs as wished; what was asked for before and is no more is taken back.

        :raise BadSetting: it makes no sense, or a NIC cannot do it. Nothing is changed.
        :raise MissingPrerequisite: a NIC refused. What was changed is changed back.
        """
        check_wish(wish)
        nics = await self._nics()
        if unknown := sorted(set(wish.nics) - {nic.name for nic in nics}):
            raise BadSetting(
                f"This host has no NIC '{unknown[0]}' with an address.", remedy="'livemove qos show' lists them."
            )
        work = _Work()
        for nic in nics:
            self._set_nic(nic, wish, work)
        if wish.classes and not work.dcb:
            work.notes.append(
                "No NIC has classes in hardware (DCB); minimums of 'livemove bandwidth' are kept in software instead."
            )
        plain = {nic.link for nic in nics if nic.name not in work.dcb}
        hardware = {nic.link for nic in nics} - plain
        record = _Record(wish=wish_body(wish), dcb=work.dcb, vlans=work.vlans, hardware=tuple(sorted(hardware)))
        return await self._change(record, work, dry_run=dry_run)

    async def remove(self, *, dry_run: bool) -> QosView:
        """Set NICs to what they were before the first :meth:`apply`, and mark nothing. Raises as that does."""
        work = _Work()
        for nic in await self._nics():
            self._set_nic(nic, None, work)
        return await self._change(None, work, dry_run=dry_run)

    async def set_again(self) -> None:
        """After a reboot: NICs have forgotten. Raises nothing; what cannot be done is logged."""
        if self._record is None or not (self._record.dcb or self._record.vlans):
            return
        try:
            work = _Work()
            for nic in await self._nics():
                self._set_nic(nic, self._record.wish.to_wish(), work)
            await carry_out(work.commands)
        except LivemoveError as error:
            _log.warning("the NICs' classes cannot be set again: %s", error.message)

    def _set_nic(self, nic: _Nic, wish: QosWish | None, work: _Work) -> None:
        """Plan a NIC: as wished where it is meant and can, else back to what it was before the first wish."""
        record = self._record
        was_dcb = record.dcb.get(nic.name) if record else None
        was_vlan = record.vlans.get(nic.name) if record else None
        named = wish is not None and nic.name in wish.nics
        meant = wish is not None and (named or not wish.nics)
        if nic.dcb is not None:
            wanted = was_dcb.to_state() if was_dcb else nic.dcb
            if wish is not None and meant and wish.classes:
                work.dcb[nic.name] = was_dcb or dcb_body(nic.dcb)
                wanted = wanted_state(wish, wanted, nic.name)
            work.commands += dcb_commands(nic.name, nic.dcb, wanted)
            work.undo += dcb_commands(nic.name, wanted, nic.dcb)
        elif named and wish is not None and wish.classes:
            raise BadSetting(
                f"{nic.name} has no classes in hardware (DCB).",
                remedy="Leave it out; minimums of 'livemove bandwidth' are kept in software there.",
            )
        if nic.vlan is not None:
            marks = dict(was_vlan) if was_vlan is not None else dict(nic.vlan)
            if wish is not None and meant and wish.priority is not None:
                work.vlans[nic.name] = dict(marks)
                marks[wish.priority] = wish.priority
            work.commands += vlan_commands(nic.name, nic.vlan, marks)
            work.undo += vlan_commands(nic.name, marks, nic.vlan)

    async def _change(self, record: _Record | None, work: _Work, *, dry_run: bool) -> QosView:
        if not dry_run:
            before = self._record
            # what NICs were set to must be on record before they are changed
            self._write(record if record is not None else before)
            try:
                await carry_out(work.commands)
            except BaseException:
                with contextlib.suppress(LivemoveError):
                    await carry_out(work.undo)
                self._write(before)
                raise
            self._write(record)
        return self._view(await self._nics(), work)

    def _write(self, record: _Record | None) -> None:
        try:
            if record is None:
                self._path.unlink(missing_ok=True)
            elif record != self._record:
                temporary = self._path.with_name(FILE + ".new")
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with temporary.open("w") as file:
                    file.write(record.model_dump_json(indent=1) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self._path)
        except OSError as error:
            raise StateUnwritable(f"{self._path} cannot be written: {error.strerror}.") from error
        self._record = record

    async def _nics(self) -> list[_Nic]:
        found = {}
        for link in await read_links(self._settings().speeds_bytes_per_s):
            # a bond is one network, and its members have the queues (#36)
            for name in link.members if link.kind in ("bond", "team") else (link.name,):
                vlan = await read_vlan_marks(name) if link.kind == "vlan" else None
                found[name] = _Nic(name, link.name, _networks(link), await read_dcb(name), vlan)
        return [found[name] for name in sorted(found)]

    def _view(self, nics: list[_Nic], work: _Work) -> QosView:
        return QosView(
            host=self._settings().name,
            wish=self._record.wish if self._record else None,
            nics=tuple(
                QosNic(
                    name=nic.name,
                    networks=nic.networks,
                    dcb=dcb_body(nic.dcb) if nic.dcb else None,
                    vlan_marks=nic.vlan,
                )
                for nic in nics
            ),
            notes=tuple([*work.notes, *self._notes(nics)]),
            commands=tuple(" ".join(command) for command in work.commands),
        )

    def _notes(self, nics: list[_Nic]) -> list[str]:
        """What is not as it was asked for."""
        notes = []
        for nic in nics:
            if self._record and nic.name in self._record.dcb and nic.dcb is not None:
                wanted = wanted_state(self._record.wish.to_wish(), self._record.dcb[nic.name].to_state(), nic.name)
                if dcb_commands(nic.name, nic.dcb, wanted):
                    notes.append(f"{nic.name} is not set as was asked for; 'livemove qos apply' sets it again.")
        return notes


def _networks(link: LinkFacts) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(ipaddress.ip_interface(address).network) for address in link.addresses))


def _read(path: Path) -> _Record | None:
    try:
        return _Record.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        raise StateDamaged(
            f"{path} is not what livemove wrote: {str(error).splitlines()[0][:200].rstrip('.')}.",
            remedy="Remove the file, set the NICs with 'dcb', and repeat 'livemove qos apply'.",
        ) from error
