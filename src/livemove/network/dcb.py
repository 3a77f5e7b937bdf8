"""Data Center Bridging of a NIC through iproute2's ``dcb``, and the 802.1p marks of a VLAN through ``ip``.

What they print is read as in iproute2's dcb/dcb_ets.c, dcb_pfc.c, dcb_app.c and ip/iplink_vlan.c. Which NIC has DCB shows when
it is asked: one without says "Operation not supported".
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from livemove.base.errors import MissingPrerequisite
from livemove.policy.qos import DSCP, PRIORITIES, DcbState

_UNSUPPORTED = ("Operation not supported", "Attribute not found", "No such file or directory")
_ANSWER_S = 10.0

Command = tuple[str, ...]


async def read_dcb(nic: str) -> DcbState | None:
    """What the NIC is set to; None when it has no DCB, or there is no ``dcb`` program to ask.

    :raise MissingPrerequisite: the program failed otherwise, or printed what is not understood.
    """
    said = []
    for what in ("ets", "pfc", "app"):
        try:
            status, out, complaint = await _run("dcb", "-j", "-N", what, "show", "dev", nic)
        except FileNotFoundError:
            return None
        if status:
            if any(text in complaint for text in _UNSUPPORTED):
                return None
            raise _failed(("dcb", what, "show", "dev", nic), complaint)
        said.append(out)
    try:
        return parse_dcb(*said)
    except ValueError as error:
        raise MissingPrerequisite(f"dcb printed what is not understood about {nic}: {error}.") from error


def parse_dcb(ets: str, pfc: str, app: str) -> DcbState:
    """The state from the JSON of ``dcb -j -N {ets,pfc,app} show``. Raises ValueError when it is something else."""
    try:
        shares, pauses, apps = (json.loads(text or "{}") for text in (ets, pfc, app))
        return DcbState(
            willing=_is_on(shares["willing"]),
            classes=_number(shares["ets_cap"], 8) or PRIORITIES,
            lossless=_number(pauses["pfc_cap"], 8),
            share=tuple(_number(value, 100) for value in _eight(shares["tc_bw"])),
            served=tuple(str(value) for value in _eight(shares["tc_tsa"])),
            class_of=tuple(_number(value, 7) for value in _eight(shares["prio_tc"])),
            pauses=tuple(_is_on(value) for value in _eight(pauses["prio_pfc"])),
            # iproute2 adds a blank to each pair
            dscp_priority=tuple(sorted((_dscp(pair[0]), _number(pair[1], 7)) for pair in apps.get("dscp_prio", []))),
        )
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def dcb_commands(nic: str, now: DcbState, wanted: DcbState) -> list[Command]:
    """What makes `wanted` of `now`; none when it is so already."""
    commands: list[Command] = []
    if (now.willing, now.share, now.served, now.class_of) != (
        wanted.willing,
        wanted.share,
        wanted.served,
        wanted.class_of,
    ):
        commands.append(
            (
                "dcb", "ets", "set", "dev", nic, "willing", "on" if wanted.willing else "off",
                "prio-tc", *_mapping(wanted.class_of), "tc-tsa", *_mapping(wanted.served), "tc-bw", *_mapping(wanted.share),
            )
        )  # fmt: skip
    if now.pauses != wanted.pauses:
        states = tuple("on" if pauses else "off" for pauses in wanted.pauses)
        commands.append(("dcb", "pfc", "set", "dev", nic, "prio-pfc", *_mapping(states)))
    before, after = set(now.dscp_priority), set(wanted.dscp_priority)
    for word, pairs in (("del", before - after), ("add", after - before)):
        commands += [
            ("dcb", "app", word, "dev", nic, "dscp-prio", f"{dscp}:{priority}") for dscp, priority in sorted(pairs)
        ]
    return commands


async def read_vlan_marks(nic: str) -> dict[int, int] | None:
    """The 802.1p priority of packets that leave a VLAN, by their priority in the kernel; None: it is no VLAN.

    :raise MissingPrerequisite: `ip` failed.
    """
    status, out, complaint = await _run("ip", "-d", "-j", "link", "show", "dev", nic)
    if status:
        raise _failed(("ip", "link", "show", "dev", nic), complaint)
    return parse_vlan_marks(out)


def parse_vlan_marks(text: str) -> dict[int, int] | None:
    """The same from the JSON of ``ip -d -j link show``; None when that is no VLAN's."""
    try:
        info = json.loads(text)[0]["linkinfo"]
        if info["info_kind"] != "vlan":
            return None
        return {int(entry["from"]): int(entry["to"]) for entry in info["info_data"].get("egress_qos", [])}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None


def vlan_commands(nic: str, now: dict[int, int], wanted: dict[int, int]) -> list[Command]:
    """What makes `wanted` of `now`. The kernel forgets no entry; one that was not there becomes 0, which is the same."""
    changed = {key: wanted.get(key, 0) for key in now.keys() | wanted.keys() if now.get(key, 0) != wanted.get(key, 0)}
    if not changed:
        return []
    pairs = (f"{key}:{priority}" for key, priority in sorted(changed.items()))
    return [("ip", "link", "set", "dev", nic, "type", "vlan", "egress-qos-map", *pairs)]


async def carry_out(commands: Sequence[Command]) -> None:
    """Run them one after the other. Raises MissingPrerequisite at the first that fails; those before it have counted."""
    for command in commands:
        try:
            status, _, complaint = await _run(*command)
        except FileNotFoundError as error:
            raise MissingPrerequisite(f"There is no '{command[0]}' program.", remedy="Install iproute2.") from error
        if status:
            raise _failed(command, complaint)


def _mapping(values: Sequence[object]) -> list[str]:
    return [f"{number}:{value}" for number, value in enumerate(values)]


def _eight(values: Any) -> list[Any]:
    if not isinstance(values, list) or len(values) != PRIORITIES:
        raise ValueError(f"{values!r:.60} is not one value for each of {PRIORITIES}")
    return values


def _number(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r:.60} is not a number from 0 to {most}")
    return value


def _dscp(value: Any) -> int:
    return DSCP[value] if isinstance(value, str) else _number(value, 63)


def _is_on(value: Any) -> bool:
    if value in (True, "on"):
        return True
    if value in (False, "off"):
        return False
    raise ValueError(f"{value!r:.60} is neither on nor off")


def _failed(command: Sequence[str], complaint: str) -> MissingPrerequisite:
    return MissingPrerequisite(
        f"'{' '.join(command)}' failed: {' '.join(complaint.split())[:300].rstrip('.') or 'it said nothing'}.",
        remedy="livemove needs CAP_NET_ADMIN, and a NIC and driver that can do this.",
    )


async def _run(*command: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        async with asyncio.timeout(_ANSWER_S):
            out, complaint = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise MissingPrerequisite(f"'{' '.join(command)}' did not end within {_ANSWER_S:g} s.") from error
    return process.returncode or 0, out.decode(errors="replace"), complaint.decode(errors="replace")
