"""``dcb`` and ``ip`` as far as livemove runs them, for NICs that this machine does not have.

python fake_dcb.py dcb|ip WORDS...      state and log are in the directory $FAKE_DCB

What is printed has the form of iproute2's sources: dcb/dcb_ets.c, dcb_pfc.c and dcb_app.c (a pair there ends in a blank),
ip/ipaddress.c and iplink_vlan.c. What is set is checked as dcb_ets_validate_bw() and dcb_parse_mapping() do.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FACTORY: dict[str, Any] = {
    "ets": {
        "willing": True, "ets_cap": 8, "cbs": False, "tc_bw": [100, 0, 0, 0, 0, 0, 0, 0], "pg_bw": [0] * 8,
        "tc_tsa": ["ets", *["strict"] * 7], "prio_tc": [0] * 8, "reco_tc_bw": [0] * 8, "reco_tc_tsa": ["strict"] * 8,
        "reco_prio_tc": [0] * 8,
    },
    "pfc": {"pfc_cap": 8, "macsec_bypass": False, "delay": 0, "prio_pfc": [False] * 8},
    "app": {"dscp_prio": [[46, 5, " "]]},
}  # fmt: skip


def make(directory: Path, nics: dict[str, dict[str, Any]]) -> None:
    """The programs, in `directory`, and the NICs that they know."""
    (directory / "state.json").write_text(json.dumps(nics))
    for name in ("dcb", "ip"):
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)


def commands(directory: Path) -> list[str]:
    """Everything that was set so far."""
    log = directory / "log"
    return log.read_text().splitlines() if log.exists() else []


class Refusal(Exception):
    """The program would say this and end with status 1."""


def mapping(words: Sequence[str], values: list[Any], convert: Any) -> None:
    for word in words:
        key, _, value = word.partition(":")
        for number in range(8) if key == "all" else [int(key)]:
            values[number] = convert(value)


def sections(words: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word in names:
            found[word] = []
            last = word
        else:
            found[last].append(word)
    return found


def set_ets(nic: dict[str, Any], words: Sequence[str]) -> None:
    ets = nic["ets"]
    for name, values in sections(words, ("willing", "prio-tc", "tc-tsa", "tc-bw")).items():
        if name == "willing":
            ets["willing"] = {"on": True, "off": False}[values[0]]
        else:
            mapping(values, ets[name.replace("-", "_")], str if name == "tc-tsa" else int)
    total, has_ets = sum(ets["tc_bw"]), "ets" in ets["tc_tsa"]
    if not set(ets["tc_tsa"]) <= {"strict", "ets", "cbs", "vendor"} or not all(0 <= tc < 8 for tc in ets["prio_tc"]):
        raise Refusal("Invalid mapping")
    if total != 100 and (has_ets or total):
        raise Refusal(f"Bandwidth percentages in tc-bw sum to {total}%, expected {100 if has_ets else 0}%")


def dcb(words: tuple[str, ...], state: dict[str, Any]) -> str:
    if words[:2] == ("-j", "-N"):
        _, _, what, show, dev, name = words
        assert (show, dev) == ("show", "dev")
        if state.get(name, {}).get("broken"):
            raise Refusal("Attribute read: Input/output error")
        if "ets" not in state.get(name, {}):
            raise Refusal("Attribute read: Operation not supported")
        return str(state[name].get("raw", {}).get(what) or json.dumps(state[name][what]))
    what, verb, dev, name, *rest = words
    nic = state[name]
    if nic.get("refuses") == what:
        raise Refusal("Attribute write: Operation not permitted")
    if (what, verb) == ("ets", "set"):
        set_ets(nic, rest)
    elif (what, verb) == ("pfc", "set"):
        assert rest[0] == "prio-pfc"
        mapping(rest[1:], nic["pfc"]["prio_pfc"], {"on": True, "off": False}.__getitem__)
    elif what == "app" and verb in ("add", "del"):
        pair = [int(number) for number in rest[1].split(":")]
        table = nic["app"].setdefault("dscp_prio", [])
        (table.append if verb == "add" else table.remove)([*pair, " "])
        if not table:
            del nic["app"]["dscp_prio"]
    else:
        raise Refusal(f'What is "{verb}"?')
    return ""


def ip(words: tuple[str, ...], state: dict[str, Any]) -> str:
    if words[:5] == ("-d", "-j", "link", "show", "dev"):
        vlan = state.get(words[5], {}).get("vlan")
        link: dict[str, Any] = {"ifname": words[5], "mtu": 1500}
        if vlan is not None:
            marks = [{"from": int(key), "to": value} for key, value in vlan.items()]
            data = {
                "protocol": "802.1Q",
                "id": 10,
                "flags": ["REORDER_HDR"],
                **({"egress_qos": marks} if marks else {}),
            }
            link["linkinfo"] = {"info_kind": "vlan", "info_data": data}
        return json.dumps([link])
    assert words[:3] == ("link", "set", "dev") and words[4:7] == ("type", "vlan", "egress-qos-map"), words
    for pair in words[7:]:
        key, _, value = pair.partition(":")
        state[words[3]]["vlan"][key] = int(value)
    return ""


def run(directory: Path, name: str, *words: str) -> tuple[int, str, str]:
    """One program run, without a process: its status, output and complaint."""
    path = directory / "state.json"
    state = json.loads(path.read_text())
    try:
        said = {"dcb": dcb, "ip": ip}[name](words, state)
    except Refusal as refusal:
        return 1, "", f"{refusal}\n"
    if "show" not in words:
        path.write_text(json.dumps(state))
        with (directory / "log").open("a") as log:
            log.write(" ".join([name, *words]) + "\n")
    return 0, said, ""


def main() -> None:
    status, said, complaint = run(Path(os.environ["FAKE_DCB"]), *sys.argv[1:])
    sys.stdout.write(said)
    sys.stderr.write(complaint)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
