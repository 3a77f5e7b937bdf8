"""``livemove host show`` and ``host set``: what a host is and has, and every one of its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from livemove.base.errors import BadSetting
from livemove.base.units import format_size
from livemove.cli.output import columns, facts, print_json, say, table, warn
from livemove.cli.verb import AsJson, OnHost, group, verb

if TYPE_CHECKING:
    from livemove.api.models import HostView

app = group("Hosts and their settings.")


@app.command("show")
@verb
async def show(host: OnHost = None, as_json: AsJson = False) -> None:
    """All hosts in a table, or with --host one of them with all its settings."""
    from livemove.cli.session import open_session

    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        answers = await session.ask(lambda agent: agent.host(), hosts=[host] if host is not None else None)
        views = answers.or_raise()
    for name, view in sorted(views.items()):
        if view.certificate.get("warning"):
            warn(f"{name}: {view.certificate['warning']}")
    if as_json:
        print_json({"hosts": [view for _, view in sorted(views.items())], "silent": answers.silent})
    elif host is not None:
        _show_one(views[host])
    else:
        headers = ["HOST", "LIVEMOVE", "QEMU", "CORES", "IDLE", "MEMORY", "AVAILABLE", "PROMISED", "OUT", "IN"]
        table(headers, [_row(name, view) for name, view in sorted(views.items())])


@app.command("set")
@verb
async def set_settings(
    changes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Settings and their new values.")],
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """Change settings of a host: all of those given, or none when one is wrong.

    Without --host: this machine's own agent, or the cluster's only host.
    """
    from livemove.cli.session import open_session

    wanted = parse_changes(changes)
    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        view = await (await session.agent(session.own_host(host))).change_settings(wanted)
    if as_json:
        print_json(view)
    else:
        for line in columns([[name, "=", value_text(view.settings.get(name))] for name in wanted]):
            say(line)


def parse_changes(changes: list[str]) -> dict[str, str]:
    """Names and values of ``KEY=VALUE`` words. Raises BadSetting for a word without ``=`` and a name given twice."""
    wanted: dict[str, str] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise BadSetting(f"'{change[:80]}' is not KEY=VALUE.", remedy="Write such as 'simultaneous=4'.")
        if name in wanted:
            raise BadSetting(f"The setting '{name}' is given twice.", remedy="Give it once.")
        wanted[name] = value
    return wanted


def value_text(value: Any) -> str:
    """A setting's value as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if value in (None, ""):
        return '""'
    return str(value)


def _row(name: str, view: HostView) -> list[str]:
    return [
        name,
        view.livemove_version,
        _qemu_version(view.qemu),
        str(view.cores),
        f"{view.idle_cores:.1f}",
        format_size(view.memory_total_bytes),
        format_size(view.memory_available_bytes),
        format_size(view.memory_promised_bytes),
        str(len(view.outgoing)),
        str(len(view.incoming)),
    ]


def _qemu_version(qemu: dict[str, Any]) -> str:
    version = qemu.get("version", "")
    return ".".join(map(str, version)) if isinstance(version, list | tuple) else str(version)


def _certificate(of: dict[str, Any]) -> str:
    if not of:
        return ""
    text = f"ends {of.get('ends')}, {float(of.get('days_left', 0)):.0f} days left"
    return f"{text}; {of['warning']}" if of.get("warning") else text


def _show_one(view: HostView) -> None:
    facts(
        {
            "host": view.name,
            "livemove": view.livemove_version,
            "QEMU": _qemu_version(view.qemu),
            **{f"QEMU {key}": value_text(value) for key, value in view.qemu.items() if key != "version"},
            "certificate": _certificate(view.certificate),
            "cores": f"{view.cores}, {view.idle_cores:.1f} idle",
            "memory": f"{format_size(view.memory_total_bytes)}, {format_size(view.memory_available_bytes)} available, "
            f"{format_size(view.memory_promised_bytes)} promised to VMs",
            "outgoing": ", ".join(view.outgoing) or "none",
            "incoming": ", ".join(view.incoming) or "none",
            "waiting": ", ".join([*view.outgoing_waiting, *view.incoming_waiting]),
        }
    )
    say("\nsettings (docs/settings.md explains them):")
    for line in columns([[name, "=", value_text(value)] for name, value in view.settings.items()]):
        say(f"  {line}")
