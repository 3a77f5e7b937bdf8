"""Changes of the kernel's state that are made for journeys and taken back to exactly what was there.

1. What is there is written down before it is changed, so that the next start of a killed agent can put it back.
2. A place is changed once however many journeys need it; the last one to let go puts back what was there before the first.
   Of two wishes the stronger counts (network.kernel_state says which), and stays until the last lets go.
3. What somebody else changed meanwhile is theirs: it is left alone, and said.
4. A call that fails leaves everything as it was before the call.

The record is one JSON file in the run directory, because it means nothing after a reboot::

    {"boot": ..., "namespace": ..., "held": [{"kind", "key", "before", "ours", "journeys": [ID, ...]}, ...]}
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from livemove.base.clock import boot_id
from livemove.base.errors import MissingPrerequisite, NetworkMissing, StateUnwritable
from livemove.base.fault_points import reach
from livemove.network.kernel_state import Spot, namespace_cookie, spot_from, spot_of
from livemove.policy.host_setup import Change

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Held:
    """One place that journeys changed."""

    spot: Spot
    before: Any
    ours: Any
    journeys: tuple[str, ...]

    def name(self) -> str:
        match self.spot.kind:
            case "route":
                return f"The route to {self.spot.key}"
            case "mptcp":
                return "The setting of MPTCP's limits"
            case "endpoint":
                return f"The MPTCP endpoint {self.spot.key}"
            case "neighbour":
                return f"The neighbour {self.spot.key}"
        return f"The kernel parameter {self.spot.key}"

    def to_json(self) -> dict[str, Any]:
        told = {"kind": self.spot.kind, "key": self.spot.key, "before": self.before, "ours": self.ours}
        return {**told, "journeys": self.journeys}


_Where = tuple[str, str]


class HostChanges:
    """One per agent. Nothing here blocks the loop: the kernel is spoken to in a thread, one call after the other.

    A call that is cancelled is carried out to its end if it has begun.

    :param record_path: in a directory that exists and only this agent's user may write to.
    """

    def __init__(self, record_path: Path) -> None:
        self._path = record_path
        self._lock = threading.Lock()
        self._held: dict[_Where, _Held] | None = None
        self._notes_of_loading: list[str] = []

    async def apply(self, journey: str, changes: Sequence[Change]) -> list[str]:
        """Make the changes for a journey; may be called again for the same one, with more or with stronger ones.

        :return: a sentence for each change that is not as wanted, because another journey needs it otherwise.
        :raise MissingPrerequisite: the right (CAP_NET_ADMIN) or a feature of the kernel is missing.
        :raise NetworkMissing: the NIC is not there any more, or lacks the address.
        :raise StateUnwritable: the record cannot be written. After each of them nothing of this call is left.
        """
        return await asyncio.to_thread(self._apply, journey, tuple(changes))

    async def take_back(self, journey: str) -> list[str]:
        """The journey lets go of all its changes. May be called twice, and for a journey that has none.

        :return: a sentence for each place that is not as it was before: somebody else changed it (it is let go of), or
            the kernel refuses (it is held still, so that it can be tried again). Raises nothing of ours.
        """
        return await asyncio.to_thread(self._take_back, lambda one: one != journey)

    async def take_back_all(self, keep: Collection[str] = ()) -> list[str]:
        """At the agent's start: every journey but those in `keep` lets go. Returns what :meth:`take_back` does."""
        notes = await asyncio.to_thread(self._take_back, lambda one: one in keep)
        notes[:0], self._notes_of_loading = self._notes_of_loading, []
        return notes

    async def held(self) -> Mapping[str, list[str]]:
        """The journeys that hold changes, each with the names of the places, in the order in which they were changed."""
        return await asyncio.to_thread(self._of_journeys)

    # In a thread ----------------------------------------------------------------------------------------------------

    def _apply(self, journey: str, changes: tuple[Change, ...]) -> list[str]:
        if not changes:
            return []
        with self._lock:
            held, notes = self._known(), []
            # what the kernel and the record said of a place when this call came to it
            found: dict[_Where, tuple[Any, _Held | None]] = {}
            try:
                for change in changes:
                    if (place := spot_of(change)) is None:
                        continue
                    spot, wanted = place
                    where = (spot.kind, spot.key)
                    with _telling(spot):
                        now = spot.read()
                    found.setdefault(where, (now, held.get(where)))
                    held[where], note = _planned(held.get(where), spot, now, wanted, journey)
                    notes += [note] if note else []
                self._write(held)
                reach("host-changes.recorded")
                for where, (now, _) in found.items():
                    item = held[where]
                    with _telling(item.spot, [held[one] for one in found]):
                        if not item.spot.is_as_wanted(now, item.ours):
                            item.spot.put(item.ours)
                    reach(f"host-changes.changed.{item.spot.kind}")
            except BaseException:
                self._undo(held, found)
                raise
            return notes

    def _undo(self, held: dict[_Where, _Held], found: Mapping[_Where, tuple[Any, _Held | None]]) -> None:
        """Back to what was before a call of :meth:`_apply`; what the kernel refuses stays on record."""
        for where, (now, old) in reversed(tuple(found.items())):
            spot = held[where].spot
            try:
                if not spot.is_same(spot.read(), now):
                    spot.put_back(now)
            except OSError as error:
                _log.warning("%s cannot be put back: %s", held[where].name(), error)
                continue
            if old is None:
                del held[where]
            else:
                held[where] = old
        try:
            self._write(held)
        except StateUnwritable as error:
            _log.warning("%s", error)

    def _take_back(self, stays: Callable[[str], bool]) -> list[str]:
        with self._lock:
            held, notes = self._known(), []
            for where, item in reversed(tuple(held.items())):
                if staying := tuple(filter(stays, item.journeys)):
                    held[where] = replace(item, journeys=staying)
                    continue
                try:
                    note = self._put_back(item)
                except OSError as error:
                    notes.append(f"{item.name()} cannot be put back: {_reason(error)}.")
                    continue
                notes += [note] if note else []
                del held[where]
                reach("host-changes.put-back")
            try:
                self._write(held)
            except StateUnwritable as error:
                notes.append(error.message)
            for note in notes:
                _log.warning("%s", note)
            return notes

    def _put_back(self, item: _Held) -> str:
        """Put back what was there; a sentence when somebody else changed it. Raises OSError."""
        try:
            now = item.spot.read()
        except FileNotFoundError:
            return ""  # the NIC has gone, and its parameters with it
        if item.spot.is_same(now, item.before):
            return ""
        if not item.spot.is_ours(now, item.ours):
            if now is None:
                return f"{item.name()} is gone: its NIC was set down or removed meanwhile."
            return f"{item.name()} was changed by somebody else meanwhile and is left as it is."
        item.spot.put_back(item.before)
        return ""

    def _of_journeys(self) -> dict[str, list[str]]:
        with self._lock:
            found: dict[str, list[str]] = {}
            for item in self._known().values():
                for journey in item.journeys:
                    found.setdefault(journey, []).append(item.name())
            return found

    # The record -----------------------------------------------------------------------------------------------------

    def _known(self) -> dict[_Where, _Held]:
        if self._held is None:
            self._held = self._load()
        return self._held

    def _load(self) -> dict[_Where, _Held]:
        try:
            data = json.loads(self._path.read_bytes())
            if data["boot"] != boot_id():
                return {}  # the kernel that was changed has ended
            found = [_held_from(entry) for entry in data["held"]]
            here = data["namespace"] == namespace_cookie()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self._set_aside(f"cannot be read ({error}): what it says of the kernel's state before was not put back")
            return {}
        if not here and found:
            self._set_aside("is of another network namespace: what was changed there was not put back")
            return {}
        return {(item.spot.kind, item.spot.key): item for item in found}

    def _set_aside(self, why: str) -> None:
        aside = self._path.with_name(f"{self._path.name}.set-aside")
        note = f"The record of network changes {why}. It is kept as {aside}."
        try:
            self._path.replace(aside)
        except OSError as error:
            note = f"The record of network changes {self._path} {why}. It cannot be set aside either: {error.strerror}."
        _log.warning("%s", note)
        self._notes_of_loading.append(note)

    def _write(self, held: dict[_Where, _Held]) -> None:
        """Not flushed to the disk: what is true after a crash of the machine is that nothing is held."""
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(6)}")
        content = {
            "boot": boot_id(),
            "namespace": namespace_cookie(),
            "held": [item.to_json() for item in held.values()],
        }
        try:
            if not held:
                self._path.unlink(missing_ok=True)
                return
            try:
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    json.dump(content, file)
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise StateUnwritable(f"{self._path} cannot be written: {error.strerror}.") from error


def _held_from(entry: Mapping[str, Any]) -> _Held:
    journeys = tuple(str(journey) for journey in entry["journeys"])
    before, ours = entry["before"], entry["ours"]
    return _Held(spot_from(str(entry["kind"]), str(entry["key"]), before, ours), before, ours, journeys)


def _planned(item: _Held | None, spot: Spot, now: Any, wanted: Any, journey: str) -> tuple[_Held, str]:
    """What is held of the place once `journey` has what it wants of it, or a sentence why it has not."""
    if item is None:
        return _Held(spot, now, spot.begin(now, wanted), (journey,)), ""
    if not spot.is_ours(now, item.ours):
        item = replace(item, before=now)  # somebody else's doing is what was there before us from now on
    if item.journeys == (journey,):
        return replace(item, ours=spot.begin(item.before, wanted)), ""
    ours, note = spot.agree(item.ours, wanted)
    return replace(item, ours=ours, journeys=tuple(dict.fromkeys((*item.journeys, journey)))), note


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextlib.contextmanager
def _telling(spot: Spot, wanted: Sequence[_Held] = ()) -> Iterator[None]:
    """An error of the kernel becomes one that names the place and what to do.

    :param wanted: all that is to be changed.
    """
    try:
        yield
    except OSError as error:
        what = f"{spot.kind} {spot.key}"
        if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
            by_hand = "; ".join(filter(None, (item.spot.command(item.ours) for item in wanted)))
            raise MissingPrerequisite(
                f"The agent may not change the host's network for the journey ({what}): {_reason(error)}.",
                remedy="Give the agent CAP_NET_ADMIN and a writable /proc/sys, use one path, or make the changes by hand"
                + (f": {by_hand}." if by_hand else "."),
            ) from error
        if spot.kind in ("route", "neighbour") or "/conf/" in spot.key:  # of a NIC
            raise NetworkMissing(
                f"The host's network cannot be set up for the journey ({what}): {_reason(error)}.",
                remedy="Check that the NICs and addresses of the plan are there and up, and run the command again.",
            ) from error
        raise MissingPrerequisite(
            f"The kernel refuses what the journey needs of the network ({what}): {_reason(error)}.",
            remedy="Use one path, or a kernel with MPTCP.",
        ) from error
