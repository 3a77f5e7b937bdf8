"""Further reference pages made from the code: the HTTP API, the metrics, the diagrams of the journey's phases.

reference.py writes them and tells which are stale. docs/states.md is written by hand but for the parts between the lines
``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route

from livemove.agent import metrics
from livemove.agent.app import _STATUS, make_app
from livemove.agent.host import Host
from livemove.agent.tls_server import require_peer
from livemove.api.client_identity import Role
from livemove.migration import incoming, machine
from livemove.migration.model import IncomingPhase, Phase

DOCS_DIR = Path(__file__).parents[3] / "docs"
_GENERATED = "(Generated from the code by `python -m livemove.cli.reference --write`.)"
_METHODS = ("get", "post", "patch", "put", "delete")


# The HTTP API ---------------------------------------------------------------------------------------------------------


class _AnyHost:
    """Stands in for a Host where routes are only made, never asked."""

    def __getattr__(self, name: str) -> _AnyHost:
        return _AnyHost()


_API_INTRODUCTION = """
Every agent answers HTTP over TLS 1.3, by default on port 7443. Bodies are JSON. A client shows a certificate of the
cluster's authority; its role decides what it may ask. People's roles are ordered: an admin may do what an operator may,
and an operator what a viewer may. A host's certificate opens the routes for hosts and nothing else. The listener admits
clients without a certificate, because a host that joins has none yet; they are refused everywhere but where the table
says anybody.

A body with unknown keys, a string or list longer than its bound, or of more than 1 MiB, is refused. The schemas in full
are at `/openapi.json`.

An answer that is not 2xx has the body `ErrorBody`, with `code`, `exit_code`, `message` and `remedy` as in
[errors.md](errors.md):
"""


def api_markdown() -> str:
    """The text of ``docs/api.md``: every route of the agent, who may use it, what it takes and gives."""
    app = make_app(cast(Host, _AnyHost()))
    schema = app.openapi()
    allowed = {(method, route.path): _allowed(route) for route in _routes(app) for method in _methods(route)}
    lines = [
        "# The HTTP API of an agent",
        "",
        _GENERATED,
        _API_INTRODUCTION.rstrip(),
        "",
        "| status | errors |",
        "|---|---|",
    ]
    lines += [f"| {status} | {', '.join(kinds)} |" for status, kinds in sorted(_statuses().items())]
    lines += ["", "## Routes", "", "| route | who | body | answer | what it does |", "|---|---|---|---|---|"]
    for (method, path), operation in _operations(schema):
        who = allowed.pop((method, path))
        body, answer = _body(operation), _answer(operation)
        meaning = " ".join(str(operation.get("description", "")).split())
        lines.append(f"| `{method} {path}{_query(operation)}` | {who} | {body} | {answer} | {meaning} |")
    for (method, path), who in sorted(allowed.items()):
        lines.append(f"| `{method} {path}` | {who} | | OpenAPI | This API's own description. |")
    return "\n".join([*lines, "", "## Bodies", "", *_bodies(schema), ""])


def routes() -> set[str]:
    """Every route as ``METHOD /path``."""
    app = make_app(cast(Host, _AnyHost()))
    return {f"{method} {route.path}" for route in _routes(app) for method in _methods(route)}


def _routes(app: FastAPI) -> Iterator[Route]:
    """The routes of the application itself and of the routers it includes, which newer FastAPIs keep apart."""

    def below(items: Iterable[Any]) -> Iterator[Route]:
        for item in items:
            if isinstance(item, Route):
                yield item
            else:
                yield from below(item.original_router.routes)

    yield from below(app.routes)


def _methods(route: Route) -> list[str]:
    return sorted((route.methods or set()) - {"HEAD"})


def _allowed(route: Route) -> str:
    """Who may use a route, by its dependency: the roles, any member of the cluster, or anybody.

    Raises LookupError for a dependency that is neither ``require_role`` nor ``require_peer``.
    """
    checks = [dependency.call for dependency in route.dependant.dependencies] if isinstance(route, APIRoute) else []
    if not checks:
        return "anybody"
    (check,) = checks
    if check is require_peer:
        return "any member"
    needed = inspect.getclosurevars(cast(Callable[..., Any], check)).nonlocals.get("role")
    if not isinstance(needed, Role):
        raise LookupError(f"{route.path} depends on {check}, whose role is not known")
    return ", ".join(role.value for role in Role if role.allows(needed))


def _statuses() -> dict[int, list[str]]:
    """HTTP status to the errors that have it: codes, or families by the name of their class."""
    named: dict[int, list[str]] = defaultdict(list)
    for kind, status in _STATUS:
        named[status].append(f"`{kind.code}`" if "code" in vars(kind) else f"other {kind.__name__}")
    named[500].append("everything else")
    return named


def _operations(schema: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method in _METHODS:
            if method in methods:
                yield (method.upper(), path), methods[method]


def _query(operation: Mapping[str, Any]) -> str:
    names = [part["name"] for part in operation.get("parameters", ()) if part["in"] == "query"]
    return f"?{'&'.join(names)}" if names else ""


def _body(operation: Mapping[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    return _type(content["application/json"]["schema"]) if content else ""


def _answer(operation: Mapping[str, Any]) -> str:
    status, response = next((status, found) for status, found in operation["responses"].items() if status < "300")
    if status == "204":
        return "nothing"
    shown = _type(response.get("content", {}).get("application/json", {}).get("schema", {}))
    return shown or "text"


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words; the links lead to the table of bodies."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])} {_type(schema['prefixItems'][0])}s"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"object of {_type(values)}" if isinstance(values, dict) and values else "object"
    return str(schema.get("type", ""))


def _bodies(schema: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, body in sorted(schema["components"]["schemas"].items()):
        if name in ("HTTPValidationError", "ValidationError"):
            continue  # FastAPI's own form of a refusal, which this agent replaces by ErrorBody
        needed = body.get("required", ())
        meaning = inspect.cleandoc(str(body.get("description", ""))).partition("\n\n")[0]
        fields = [
            f"`{field}`{'' if field in needed else '?'} {_type(kind)}".rstrip()
            for field, kind in body.get("properties", {}).items()
        ]
        lines += [f"### {name}", "", *([" ".join(meaning.split()), ""] if meaning else [])]
        lines += [f"{'; '.join(fields)}.", ""]
    return ["A question mark stands for a field that may be left out.", "", *lines[:-1]]


# Metrics --------------------------------------------------------------------------------------------------------------


def _idle_host() -> Host:
    """A host with nothing on it, for the names, kinds and labels of its metrics."""
    view = SimpleNamespace(
        memory_available_bytes=0,
        memory_promised_bytes=0,
        outgoing=(),
        outgoing_waiting=(),
        incoming=(),
        incoming_waiting=(),
    )
    idle = SimpleNamespace(
        view=lambda: view,
        records=SimpleNamespace(all=lambda: []),
        vms=SimpleNamespace(unresolved=set()),
        departures=SimpleNamespace(ended={}, open=lambda: []),
        follower=SimpleNamespace(certificate_days_left=lambda: 0.0, silent_s=lambda: 0.0),
        membership=SimpleNamespace(revocations=SimpleNamespace(serials=())),
        refusals=SimpleNamespace(counts={}),
        governor=SimpleNamespace(shares=list, others={}, shaped=frozenset()),
    )
    return cast(Host, idle)


def metrics_markdown() -> str:
    """The text of ``docs/metrics.md``: every metric with its kind, labels and meaning."""
    kinds: dict[str, tuple[str, tuple[str, ...]]] = {}
    for family in metrics._Collector(_idle_host()).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        kinds[name] = (family.type, tuple(getattr(family, "_labelnames", ())))
    lines = [
        "# Metrics",
        "",
        "Every agent gives these at `GET /metrics` in Prometheus's text form. The scraper needs a certificate with the role",
        "viewer at least, and the name of the host as TLS server name. Values by journey exist while the journey is open at",
        "its source.",
        _GENERATED,
        "",
        "| metric | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for name, meaning in metrics.METRICS.items():
        kind, labels = kinds[name]
        lines.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |")
    return "\n".join([*lines, ""])


# The phases of a journey ----------------------------------------------------------------------------------------------

_ENDS = (
    Phase.ABORTING,
    Phase.UNRESOLVED,
    *(phase for phase in Phase if phase.terminal and phase is not Phase.COMPLETED),
)


def states_markdown() -> str:
    """The text of ``docs/states.md`` with its generated parts as the tables of rules say now."""
    parts = {
        "source, the way forward": _forward_diagram,
        "source, the ends": _ends_diagram,
        "source, what changes no phase": _standing_table,
        "destination": _destination_diagram,
        "destination, what changes no phase": _repeats_table,
    }
    return fill((DOCS_DIR / "states.md").read_text(), parts)


def fill(text: str, parts: Mapping[str, Callable[[], list[str]]]) -> str:
    """`text` with every generated part made anew. Raises LookupError when a part has no place in it, or a place no part."""
    seen = set()

    def part(match: re.Match[str]) -> str:
        seen.add(match[1])
        if match[1] not in parts:
            raise LookupError(f"nothing generates '{match[1]}'")
        return "\n".join([f"<!-- generated: {match[1]} -->", *parts[match[1]](), "<!-- end -->"])

    filled = re.sub(r"<!-- generated: ([^\n]+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL)
    if missing := set(parts) - seen:
        raise LookupError(f"there is no place for {sorted(missing)}")
    return filled


def _mermaid(nodes: Iterable[tuple[str, str]], edges: Iterable[tuple[str, str, str]]) -> list[str]:
    """A state diagram from (id, text) and (from, to, label)."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{text}" as {name}' for name, text in nodes]
    lines += [f"    {start} --> {end}{': ' + label if label else ''}" for start, end, label in edges]
    return [*lines, "```"]


def _source_edges() -> list[tuple[Phase, Phase, str]]:
    """(from, to, event) without the events that leave the phase as it is, in the order of the phases."""
    order = list(Phase)
    edges = [
        (start, end, event.__name__)
        for (start, event), ends in machine.TRANSITIONS.items()
        for end in ends
        if end is not start
    ]
    return sorted(edges, key=lambda edge: (order.index(edge[0]), order.index(edge[1]), edge[2]))


def _joined(edges: Iterable[tuple[Any, Any, str]]) -> dict[tuple[Any, Any], str]:
    labels: dict[tuple[Any, Any], list[str]] = defaultdict(list)
    for start, end, label in edges:
        labels[start, end].append(label)
    return {ends: ", ".join(names) for ends, names in labels.items()}


def _forward_diagram() -> list[str]:
    edges = _joined(edge for edge in _source_edges() if edge[0] not in _ENDS and edge[1] not in _ENDS)
    phases = [phase for phase in Phase if any(phase in ends for ends in edges)]
    drawn = [("[*]", Phase.FINDING.name, ""), *((start.name, end.name, label) for (start, end), label in edges.items())]
    return _mermaid(
        ((phase.name, phase.value) for phase in phases),
        [*drawn, *((phase.name, "[*]", "") for phase in phases if phase.terminal)],
    )


def _ends_diagram() -> list[str]:
    """How a journey leaves the way forward; phases that leave it by the same events to the same ends are drawn as one."""
    edges = [edge for edge in _source_edges() if edge[0] in _ENDS or edge[1] in _ENDS]
    ways: dict[Phase, list[tuple[Phase, str]]] = defaultdict(list)
    for start, end, event in edges:
        ways[start].append((end, event))
    alike: dict[tuple[tuple[Phase, str], ...], list[Phase]] = defaultdict(list)
    for phase in Phase:
        if phase in ways:
            alike[tuple(ways[phase])].append(phase)
    nodes = {phase: phase.name for phase in Phase}
    texts: dict[str, str] = {}
    drawn: list[tuple[str, str, str]] = []
    for group in alike.values():
        name = "_OR_".join(phase.name for phase in group)
        texts[name] = ", ".join(phase.value for phase in group)
        nodes |= dict.fromkeys(group, name)
    for outward, group in alike.items():
        for (_, end), label in _joined((group[0], end, event) for end, event in outward).items():
            texts.setdefault(nodes[end], end.value)
            drawn.append((nodes[group[0]], nodes[end], label))
    finals = [(phase.name, "[*]", "") for phase in Phase if phase.terminal and phase.name in texts]
    return _mermaid(texts.items(), [*drawn, *finals])


def _standing_table() -> list[str]:
    standing: dict[str, list[str]] = defaultdict(list)
    order = list(Phase)
    for phase, event in sorted(machine.TRANSITIONS, key=lambda key: order.index(key[0])):
        if phase in machine.TRANSITIONS[phase, event]:
            standing[event.__name__].append(phase.value)
    lines = ["| event | may leave the phase as it is in |", "|---|---|"]
    return lines + [f"| {event} | {', '.join(phases)} |" for event, phases in sorted(standing.items())]


def _destination_diagram() -> list[str]:
    edges = _joined(
        (start, end, request.value) for (start, request), end in incoming.TRANSITIONS.items() if start is not end
    )
    drawn = [("[*]", IncomingPhase.RESERVED.name, "")]
    drawn += [(start.name, end.name, label) for (start, end), label in edges.items()]
    finals = (IncomingPhase.SETTLED, IncomingPhase.ABANDONED)
    return _mermaid(
        ((phase.name, phase.value) for phase in IncomingPhase), [*drawn, *((phase.name, "[*]", "") for phase in finals)]
    )


def _repeats_table() -> list[str]:
    repeats: dict[IncomingPhase, list[str]] = defaultdict(list)
    for (start, request), end in incoming.TRANSITIONS.items():
        if start is end:
            repeats[start].append(request.value)
    lines = ["| phase | requests that leave it as it is |", "|---|---|"]
    return lines + [f"| {phase.value} | {', '.join(requests)} |" for phase, requests in repeats.items()]


PAGES: dict[str, Callable[[], str]] = {
    "api.md": api_markdown,
    "metrics.md": metrics_markdown,
    "states.md": states_markdown,
}
