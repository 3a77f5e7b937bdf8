"""The documents tell what the code does: routes, roles, metrics, phases, items, commands, links; and nothing of this machine."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families

from livemove.agent.app import make_app
from livemove.agent.metrics import METRICS, render_metrics
from livemove.agent.refusals import Refusals
from livemove.agent.tls_server import PEER_KEY
from livemove.api.client_identity import Peer, Role
from livemove.api.models import ReportView
from livemove.base.clock import SystemClock
from livemove.base.errors import by_code
from livemove.base.settings import HostSettings
from livemove.cli import reference, reference_more
from livemove.cli.main import app
from livemove.migration import events as on
from livemove.migration import incoming, machine
from livemove.migration.model import IncomingPhase, Phase
from livemove.policy.governing import Direction

DOCS = reference.DOCS_DIR
ROOT = DOCS.parent
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
UNIT = "livemove-agent.service"


def text_of(name: str) -> str:
    return (DOCS / name).read_text()


def rows_of(text: str) -> list[list[str]]:
    """The cells of all table rows but the headers' rules."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


# Routes ---------------------------------------------------------------------------------------------------------------


def documented_routes() -> dict[str, str]:
    """``METHOD /path`` to the roles that the page names."""
    rows = [row for row in rows_of(text_of("api.md")) if re.match(r"`(GET|POST|PATCH|PUT|DELETE) /", row[0])]
    return {row[0].strip("`").partition("?")[0]: row[1] for row in rows}


def test_every_route_is_documented_with_a_sentence() -> None:
    assert set(documented_routes()) == reference_more.routes()
    for row in rows_of(text_of("api.md")):
        if row[0].startswith(("`GET", "`POST", "`PATCH", "`DELETE")):
            assert row[-1].endswith("."), row


_HOST = reference_more._AnyHost()
_HOST.refusals = Refusals(SystemClock())  # type: ignore[attr-defined]
AGENT = make_app(_HOST)  # type: ignore[arg-type]


async def ask(route: str, role: Role | None) -> str:
    """The code that the real application answers when somebody of that role asks; empty when it refuses nothing."""
    peer = None if role is None else Peer("somebody", role, "f" * 64, "1", 2e9)

    async def with_peer(scope: Any, receive: Any, send: Any) -> None:
        await AGENT({**scope, "state": {PEER_KEY: peer}}, receive, send)

    method, path = route.split()
    transport = httpx.ASGITransport(with_peer, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
        answer = await client.request(method, re.sub(r"{\w+}", "name", path))
    return str(answer.json().get("code", ""))


@pytest.mark.parametrize("route", sorted(reference_more.routes()))
async def test_the_roles_on_the_page_are_those_that_the_agent_admits(route: str) -> None:
    who = documented_routes()[route]
    for role in (None, *Role):
        expected = who == "anybody" or (role is not None and (who == "any member" or role.value in who.split(", ")))
        assert (await ask(route, role) != "not-permitted") is expected, (route, role)


def test_a_route_with_an_unknown_guard_has_no_page() -> None:
    from fastapi import APIRouter, Depends

    router = APIRouter()
    router.get("/odd", dependencies=[Depends(lambda: None)])(lambda: None)
    with pytest.raises(LookupError, match="/odd"):
        reference_more._allowed(router.routes[0])  # type: ignore[arg-type]


# Metrics --------------------------------------------------------------------------------------------------------------


def busy_host() -> Any:
    """A host with one VM and one journey."""
    view = SimpleNamespace(
        memory_available_bytes=1, memory_promised_bytes=2, outgoing=("j",), outgoing_waiting=(), incoming=(), incoming_waiting=()
    )  # fmt: skip
    counters = SimpleNamespace(remaining_bytes=3, wire_bytes=4, rounds=5)
    departure = SimpleNamespace(
        record=SimpleNamespace(vm="web1", id="j", destination="B"),
        effects=SimpleNamespace(engine=SimpleNamespace(counters=counters, rate_bytes_per_s=6.0)),
    )
    return SimpleNamespace(
        view=lambda: view,
        records=SimpleNamespace(all=lambda: [SimpleNamespace(name="web1")]),
        vms=SimpleNamespace(unresolved=set(), find_running=lambda name: name),
        departures=SimpleNamespace(ended={"failed": 1}, open=lambda: [departure]),
        follower=SimpleNamespace(certificate_days_left=lambda: 200.5, silent_s=lambda: 3.0),
        membership=SimpleNamespace(revocations=SimpleNamespace(serials={"7"})),
        refusals=SimpleNamespace(counts={"handshake": 2}),
        governor=SimpleNamespace(
            shares=lambda: [("j", "source", 1e6)], others={("eth0", Direction.OUT): 2e6}, shaped=frozenset({"eth0"})
        ),
    )


def test_every_metric_that_is_emitted_is_documented_and_the_other_way_round() -> None:
    emitted = {
        sample.name: tuple(sample.labels)
        for family in text_string_to_metric_families(render_metrics(busy_host()).decode())
        for sample in family.samples
    }
    rows = {row[0].strip("`"): row for row in rows_of(text_of("metrics.md"))[1:]}
    assert set(emitted) == set(METRICS) == set(rows)
    for name, labels in emitted.items():
        assert set(re.findall(r"\w+", rows[name][2])) == set(labels)


# Phases ---------------------------------------------------------------------------------------------------------------


def test_every_phase_has_its_sentence() -> None:
    first: dict[str, list[str]] = {}
    for row in rows_of(text_of("states.md")):
        first.setdefault(re.sub(r" \(\d+\)$", "", row[0]), row)
    for phase in (*Phase, *IncomingPhase):
        assert first[phase.value][1].endswith("."), phase


def test_a_new_rule_makes_the_diagrams_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "states.md" not in reference.stale_pages()
    monkeypatch.setitem(machine.TRANSITIONS, (Phase.FINDING, on.GuestReset), frozenset({Phase.BLACKOUT}))
    assert "FINDING --> BLACKOUT: GuestReset" in reference_more.states_markdown()
    assert "states.md" in reference.stale_pages()
    monkeypatch.undo()
    monkeypatch.setitem(incoming.TRANSITIONS, (IncomingPhase.RESERVED, incoming.Request.GO), IncomingPhase.OWNED)
    assert "RESERVED --> OWNED: go" in reference_more.states_markdown()
    assert "states.md" in reference.stale_pages()


def test_every_declared_transition_is_drawn_or_listed() -> None:
    text = text_of("states.md")
    boxes = dict(re.findall(r'state "([^"]+)" as (\w+)', text))
    for (start, event), ends in machine.TRANSITIONS.items():
        for end in ends:
            if end is start:
                assert re.search(rf"\| {event.__name__} \| [^|]*\b{start.value}\b", text), (start, event)
            else:
                drawn = [name for label, name in boxes.items() if start.value in label.split(", ")]
                arrows = "|".join(drawn)
                assert re.search(rf"(?:{arrows}) --> {end.name}: [^\n]*\b{event.__name__}\b", text), (start, event, end)


def test_a_generated_part_without_a_place_is_an_error() -> None:
    page = "<!-- generated: a -->\nold\n<!-- end -->"
    assert reference_more.fill(page, {"a": lambda: ["new"]}) == "<!-- generated: a -->\nnew\n<!-- end -->"
    with pytest.raises(LookupError, match="no place"):
        reference_more.fill(page, {"a": lambda: [], "b": lambda: []})
    with pytest.raises(LookupError, match="nothing generates 'a'"):
        reference_more.fill(page, {})


# Items ----------------------------------------------------------------------------------------------------------------


def named(kind: str, text: str) -> set[str]:
    """The names in ``kind `one`, `two```."""
    found = re.findall(rf"\b{kind}s? ((?:`[^`]+`)(?:, `[^`]+`)*)", text)
    return {name for group in found for name in re.findall(r"`([^`]+)`", group)}


def test_every_item_has_one_row_in_order() -> None:
    items = [row[0] for row in rows_of(text_of("requirements.md")) if row[0] != "item"]
    assert items == [*(f"#{number}" for number in range(1, 161)), *(f"N{number}" for number in range(1, 21))]


def test_what_the_items_name_exists() -> None:
    text = text_of("requirements.md")
    settings, fields = named("setting", text), named("report", text)
    assert {"option", "simultaneous"} <= settings <= set(HostSettings.model_fields)
    assert {"steps", "downtime_ms"} <= fields <= set(ReportView.model_fields)
    assert named("metric", text) <= set(METRICS)
    assert {"port-closed"} <= named("error", text) <= set(by_code())
    for row in rows_of(text):
        claims = "`" in row[2] or "planned" in row[2] or re.search(r"\(.*\.md\)|^partly: \w", row[2])
        assert claims or row[0] in ("item", "#5"), row


def test_the_operator_s_table_names_real_settings_and_errors() -> None:
    text = text_of("operations.md")
    settings = text.partition("| setting | why |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", settings)) <= set(HostSettings.model_fields)
    symptoms = text.partition("| what you see |")[2].partition("\n\n")[0]
    codes = {code for row in rows_of(symptoms) for code in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", row[0])}
    states = {"guest-panicked", "io-error"}
    assert {"port-closed", "not-permitted", "qemu-gone"} <= codes
    assert codes - states <= set(by_code())


# Commands -------------------------------------------------------------------------------------------------------------


def commands_in(text: str) -> Iterator[str]:
    """What is written as a command of livemove: in code spans, and on lines of code blocks, after a prompt or not."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in (line for block in blocks for line in block.splitlines()):
        words = re.sub(r"^\w*\$ +|\s#\s.*", "", line)
        yield from (part.strip() for part in re.split(r" && | \| ", words) if part.startswith("livemove "))
    yield from (span for span in re.findall(r"`([^`\n]+)`", prose) if span.startswith("livemove "))


def fault_of(command: str) -> str:
    """Why livemove would not understand `command`; empty when it would."""
    root: Any = typer.main.get_command(app)
    found, words = root, shlex.split(command.replace("'", ""))[1:]
    while words and getattr(found, "commands", None):
        if words[0].startswith("-") or words[0] in ("...", "VERB"):
            break
        if words[0] not in found.commands:
            return f"no verb '{words[0]}'"
        found = found.commands[words.pop(0)]
    known = {name for each in (root, found) for part in each.params for name in (*part.opts, *part.secondary_opts)}
    unknown = [word for word in words if word.startswith("--") and word != "--" and word.partition("=")[0] not in known]
    return f"no option {unknown}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documents_exists(page: Path) -> None:
    assert {command: fault for command in commands_in(page.read_text()) if (fault := fault_of(command))} == {}


def test_a_wrong_command_is_noticed() -> None:
    assert list(commands_in("`livemove fly x`\n```\nlivemove vm start x\nls\n```\n")) == [
        "livemove vm start x",
        "livemove fly x",
    ]
    assert list(commands_in("```\nA$ livemove fly && livemove vm  # a remark\n```\n")) == [
        "livemove fly",
        "livemove vm",
    ]
    assert fault_of("livemove fly x") == "no verb 'fly'"
    assert fault_of("livemove migrate x --to B --faster") == "no option ['--faster']"
    assert fault_of("livemove migrate x --to B --downtime 1s") == ""


# Links ----------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there.read_text()), f"{page.name}: {target}"


def test_every_page_is_linked_from_another_page() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+\.md[^)\s]*)\)", page.read_text())
    }
    assert {page.name for page in DOCS.rglob("*.md") if page.resolve() not in linked} == set()


# The service ----------------------------------------------------------------------------------------------------------


def test_the_unit_is_in_the_package_and_keeps_vms_out_of_the_agent_s_end() -> None:
    lines = (resources.files("livemove.agent") / UNIT).read_text().splitlines()
    assert {"Type=notify", "ExecStart=livemove agent", "KillMode=process", "Restart=on-failure"} <= set(lines)
    # systemd would remove it, and the sockets of running VMs in it, when the agent stops
    assert not any(line.startswith("RuntimeDirectory=") for line in lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    def complaints(text: str) -> str:
        (tmp_path / UNIT).write_text(text.replace("ExecStart=livemove", f"ExecStart={sys.executable}"))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", tmp_path / UNIT], capture_output=True, text=True, timeout=60
        )
        return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if UNIT in line)

    text = (resources.files("livemove.agent") / UNIT).read_text()
    assert complaints(text) == ""
    assert "KillMood" in complaints(text.replace("KillMode=", "KillMood="))


# Nothing of this machine ----------------------------------------------------------------------------------------------

# written in two parts, or this file would be the first find
MACHINE = re.compile("/" + r"work(?![\w-])")
REGISTRIES = [
    name + "." + domain
    for name, domain in (
        ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("debian", "org"), ("golang", "org"), ("docker", "io"),
        ("ghcr", "io"), ("crates", "io"),
    )
]  # fmt: skip
KNOWN_HOSTS = re.compile(
    r"www\.apache\.org|agent|localhost|127\.0\.0\.1|192\.0\.2\.\d+|[\w.-]+\.example|example\.(com|org)"
)


def files() -> Iterator[Path]:
    """What may be committed."""
    for top in ROOT.iterdir():
        if top.name in ("build", "dist") or (top.name.startswith(".") and top.name not in (".ci", ".gitignore")):
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            made = "__pycache__" in path.parts or any(part.endswith(".egg-info") for part in path.parts)
            if path.is_file() and not made:
                yield path


def test_no_file_names_this_machine_or_a_registry() -> None:
    finds = []
    for path in files():
        text = path.read_bytes().decode(errors="replace")
        hosts = re.findall(r"https?://([A-Za-z0-9][\w.-]*)", text)
        finds += [(path.name, host) for host in hosts if not KNOWN_HOSTS.fullmatch(host)]
        finds += [(path.name, name) for name in REGISTRIES if name in text]
        finds += [(path.name, found) for found in MACHINE.findall(text)]
    assert finds == []
