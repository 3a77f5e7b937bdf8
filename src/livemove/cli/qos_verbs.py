"""``livemove qos``: marks by which NICs and switches tell migration from other traffic, and classes in the NICs' hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.errors import BadSetting
from livemove.cli.output import print_json, say, table, warn
from livemove.cli.verb import AsJson, OnHost, group, verb

if TYPE_CHECKING:
    from livemove.api.qos_models import QosNic, QosView

app = group("How NICs and switches tell migration from other traffic.")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the exact commands; change nothing.")]


@app.command("show")
@verb
async def show(host: OnHost = None, as_json: AsJson = False) -> None:
    """Show marks and hardware classes of all hosts, and in what they differ: two ends that differ protect nothing."""
    from livemove.cli.session import open_session
    from livemove.policy.qos import differences

    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        answers = await session.ask(lambda agent: agent.qos(), hosts=[host] if host is not None else None)
        views = [view for _, view in sorted(answers.or_raise().items())]
    differing = differences(view.to_host() for view in views)
    if as_json:
        print_json({"hosts": views, "differences": differing, "silent": answers.silent})
        return
    _show(views)
    for line in differing:
        warn(line)
    if len(views) > 1 and not differing:
        say("\nThe hosts agree. What the switches between them are set to cannot be seen from here.")


@app.command("apply")
@verb
async def apply(
    dscp: Annotated[
        str, typer.Option("--dscp", metavar="NAME", help="Mark migration's packets, such as CS1, AF11, LE or 0 to 63.")
    ] = "",
    priority: Annotated[
        int | None,
        typer.Option("--priority", metavar="P", help="802.1p priority of migration's packets, 0 to 7; customary is 4."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="P=PERCENT[,lossless]",
            help="Share of a NIC for a priority, in hardware with DCB (ETS; lossless: PFC, two at most); may be repeated.",
        ),
    ] = None,
    nics: Annotated[
        list[str] | None,
        typer.Option("--nic", metavar="NIC", help="Only these; may be repeated. Else every one that can."),
    ] = None,
    dry_run: DryRun = False,
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """Mark migration's packets, and set classes in the hardware of NICs that have them, in place of what was asked before.

    Where a NIC has no such hardware, minimums of 'livemove bandwidth' are kept in software. Repeat it on every host, and
    set the switches between them alike.
    """
    from livemove.api.qos_models import wish_body
    from livemove.cli.session import open_session
    from livemove.policy.qos import QosWish, check_wish, parse_class, parse_dscp

    wish = QosWish(
        parse_dscp(dscp) if dscp else None,
        priority,
        tuple(parse_class(text) for text in classes or ()),
        tuple(nics or ()),
    )
    check_wish(wish)
    if any(len(nic) > 15 for nic in wish.nics):
        raise BadSetting("The name of a NIC has 15 characters at most.", remedy="'livemove qos show' lists them.")
    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        view = await (await session.agent(session.own_host(host))).apply_qos(wish_body(wish), dry_run=dry_run)
    _changed(view, dry_run=dry_run, as_json=as_json)


@app.command("remove")
@verb
async def remove(dry_run: DryRun = False, host: OnHost = None, as_json: AsJson = False) -> None:
    """Mark nothing any more, and set the NICs to what they were before."""
    from livemove.cli.session import open_session

    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        view = await (await session.agent(session.own_host(host))).remove_qos(dry_run=dry_run)
    _changed(view, dry_run=dry_run, as_json=as_json)


def _changed(view: QosView, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    if dry_run:
        say("Nothing was changed. On NICs, this would be run:" if view.commands else "No NIC would be changed.")
    for line in view.commands:
        say(line)
    if not dry_run:
        _show([view])
    else:
        for note in view.notes:
            warn(f"{view.host}: {note}")


def _show(views: list[QosView]) -> None:
    from livemove.policy.qos import dscp_name

    for view in views:
        wish = view.wish
        dscp = "none" if wish is None or wish.dscp is None else dscp_name(wish.dscp)
        priority = "none" if wish is None or wish.priority is None else str(wish.priority)
        say(f"{view.host}: migration has DSCP {dscp}, 802.1p priority {priority}")
        for note in view.notes:
            warn(f"{view.host}: {note}")
    say()
    table(
        ["HOST", "NIC", "NETWORKS", "HARDWARE", "CLASSES", "LOSSLESS"],
        [_row(view.host, nic) for view in views for nic in view.nics],
        empty="No NICs with addresses.",
    )


def _row(host: str, nic: QosNic) -> list[str]:
    networks = ", ".join(nic.networks)
    if nic.dcb is None:
        marks = ", ".join(f"{priority}" for priority in (nic.vlan_marks or {}).values() if priority)
        return [host, nic.name, networks, f"no DCB{'; VLAN marks ' + marks if marks else ''}", "", ""]
    classes = []
    for number in sorted(set(nic.dcb.class_of)):
        priorities = ",".join(str(priority) for priority, of in enumerate(nic.dcb.class_of) if of == number)
        share = f"{nic.dcb.share[number]} %" if nic.dcb.served[number] == "ets" else nic.dcb.served[number]
        classes.append(f"{priorities}: {share}")
    lossless = ",".join(str(priority) for priority, pauses in enumerate(nic.dcb.pauses) if pauses)
    return [host, nic.name, networks, "DCB, willing" if nic.dcb.willing else "DCB", "; ".join(classes), lossless]
