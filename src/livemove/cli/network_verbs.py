"""``livemove network``: which networks migrations use, for the whole cluster and on one host; and whether they work.

The cluster's list is kept on the authority's host, which the commands find by themselves; the other hosts have it within
seconds. Doing what is so already changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.errors import BadSetting, LivemoveError
from livemove.cli.output import Usage, print_json, say, warn
from livemove.cli.verb import AsJson, OnHost, complete_hosts, group, verb

if TYPE_CHECKING:
    from livemove.api.network_models import NetworksView, NetworkTestView
    from livemove.base.errors import LivemoveError
    from livemove.cli.session import Session
    from livemove.policy.network_rules import Rules
    from livemove.policy.paths import HostNetworks

app = group("The networks that migrations use.")

Network = Annotated[str, typer.Argument(metavar="NET", help="A subnet such as 10.1.0.0/24, or its name in the list.")]
Networks = Annotated[list[str], typer.Argument(metavar="NET...", help="Subnets, or their names in the list, in order.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be so; nothing is changed.")]


@app.command("list")
@verb
async def list_networks(as_json: AsJson = False) -> None:
    """The cluster's networks by preference: which hosts are on each, by which NICs, and whether migrations may use it."""
    from livemove.cli.network_view import network_json, network_lines, networks_of
    from livemove.cli.session import open_session

    async with open_session() as session:
        answers = await session.ask(lambda agent: agent.networks())
        views = answers.or_raise()
    newest = max(views.values(), key=lambda view: view.serial)
    found = networks_of(_hosts(views), [rule.rule() for rule in newest.rules])
    if as_json:
        print_json({"networks": [network_json(each) for each in found], "silent": answers.silent})
    else:
        say("\n".join(network_lines(found)) if found else "No host has an address that others could reach.")


@app.command("prefer")
@verb
async def prefer_networks(networks: Networks, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Allow these networks and use them in this order, before all others that are allowed."""
    from livemove.policy.network_rules import prefer

    await _change(lambda rules: prefer(rules, networks), dry_run=dry_run, as_json=as_json)


@app.command("allow")
@verb
async def allow_network(
    network: Network,
    metric: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="The lowest is taken first; last if not given.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What people call this network.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Allow a network. As soon as one is allowed by name, networks that are not in the list are not used."""
    from livemove.policy.network_rules import allow

    await _change(lambda rules: allow(rules, network, metric=metric, name=name), dry_run=dry_run, as_json=as_json)


@app.command("deny")
@verb
async def deny_network(network: Network, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Keep migrations off a network and off all within it, unless a smaller one is allowed."""
    from livemove.policy.network_rules import deny

    await _change(lambda rules: deny(rules, network), dry_run=dry_run, as_json=as_json)


@app.command("forget")
@verb
async def forget_network(network: Network, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Take a network out of the list, which then neither allows nor denies it."""
    from livemove.policy.network_rules import forget

    await _change(lambda rules: forget(rules, network), dry_run=dry_run, as_json=as_json)


@app.command("incoming")
@verb
async def incoming(
    addresses: Annotated[
        list[str], typer.Argument(metavar="any|ADDRESS...", help="Addresses of the host, in order; or any.")
    ],
    host: OnHost = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Choose the addresses of a host that migrations may use, in either direction.

    Without --host: this machine's own agent, or the cluster's only host.
    """
    from dataclasses import replace

    from livemove.cli.network_view import hosts_left_out
    from livemove.cli.session import open_session

    wanted = _parse_addresses(addresses)
    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        name = session.own_host(host)
        agent = await session.agent(name)
        view = await agent.networks()
        own = view.own.networks()
        _check_present(own, wanted)
        changed = own.incoming != wanted
        if changed and not dry_run:
            await agent.change_settings({"incoming": ",".join(wanted) or "any"})
    if hosts_left_out({name: replace(own, incoming=wanted)}, [rule.rule() for rule in view.rules]):
        warn(_no_way(name))
    if as_json:
        print_json({"host": name, "incoming": list(wanted), "changed": changed, "dry_run": dry_run})
    else:
        say(_said(changed, dry_run))
        say(f"{name}: {', '.join(wanted) or 'any address'}")


@app.command("test")
@verb
async def probe_networks(
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="HOST", help="From this host only.", autocompletion=complete_hosts),
    ] = None,
    destination: Annotated[
        str | None, typer.Option("--to", metavar="HOST", help="To this host only.", autocompletion=complete_hosts)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Probe every path between hosts as a migration does at its start: connection, round trip, largest packet each way.

    Nothing is migrated, and nothing stays open. Ends with 0 when migrations may use every path as it is; else with the code
    of the error that a host answered, with 24 (port-closed) when a path does not work, or with 38 (mtu-black-hole) when
    one loses large packets.
    """
    import asyncio

    from livemove.cli.network_test_view import failure_json, failure_lines, lines_of, rounds, worst
    from livemove.cli.session import open_session

    outcomes: dict[tuple[str, str], NetworkTestView | LivemoveError] = {}
    async with open_session() as session:
        for host in filter(None, (source, destination)):
            await session.check_host(host)
        unreachable = (await session.ask(lambda agent: agent.cluster())).refused
        sources, destinations = ([one] if one else session.hosts for one in (source, destination))
        for pairs in rounds(sources, destinations):
            found = await asyncio.gather(*(_probed(session, *pair, unreachable) for pair in pairs))
            outcomes |= dict(zip(pairs, found, strict=True))
    if not outcomes:
        raise Usage("There are no two hosts to test the network between.")
    failed = {pair: found for pair, found in outcomes.items() if isinstance(found, LivemoveError)}
    tests = [found for found in outcomes.values() if not isinstance(found, LivemoveError)]
    if as_json:
        print_json({"tests": tests, "failed": [failure_json(*pair, error) for pair, error in failed.items()]})
    else:
        texts = [lines_of(test) for test in tests] + [failure_lines(*pair, error) for pair, error in failed.items()]
        say("\n\n".join("\n".join(lines) for lines in texts))
    raise typer.Exit(worst(tests, list(failed.values())))


async def _probed(
    session: Session, source: str, destination: str, unreachable: Mapping[str, LivemoveError]
) -> NetworkTestView | LivemoveError:
    """What the source found out, or why it could not."""
    try:
        for host in (source, destination):
            if host in unreachable:
                raise unreachable[host]
        return await (await session.agent(source)).test_network(destination)
    except LivemoveError as error:
        return error


async def _change(change: Callable[[Rules], Rules], *, dry_run: bool, as_json: bool) -> None:
    """Change the cluster's list on the authority's host, and tell what it is then."""
    from livemove.api.network_models import NetworkRuleBody, SetNetworks
    from livemove.cli.network_view import hosts_left_out, network_json, network_lines, networks_of
    from livemove.cli.session import open_session
    from livemove.policy.network_rules import is_strict

    async with open_session() as session:
        view, views = await _asked(session)
        before = tuple(rule.rule() for rule in view.rules)
        after = change(before)
        changed = after != before
        if changed and not dry_run:
            body = SetNetworks(serial=view.serial, rules=tuple(NetworkRuleBody.of(rule) for rule in after))
            view = await (await session.agent(view.authority)).set_networks(body)
    if is_strict(before) and not is_strict(after):
        warn("the list allows no network by name any more: migrations may use all that it does not deny")
    hosts = _hosts(views)
    for host in hosts_left_out(hosts, after):
        warn(_no_way(host))
    found = networks_of(hosts, after)
    for network in found:
        if not network.ends and changed:
            warn(f"no host that answered is on {network.subnet}")
    if as_json:
        print_json(
            {
                "networks": [network_json(each) for each in found],
                "serial": view.serial,
                "changed": changed,
                "dry_run": dry_run,
            }
        )
    else:
        say(_said(changed, dry_run))
        say("\n".join(network_lines(found)))


async def _asked(session: Session) -> tuple[NetworksView, dict[str, NetworksView]]:
    """What the authority's host says, whose list counts, and what all hosts say that answer.

    Raises the error of the authority's host when that does not answer.
    """
    answers = await session.ask(lambda agent: agent.networks())
    authority = next((view.authority for view in answers.given.values()), session.authority)
    if authority in answers.refused:
        raise answers.refused[authority]
    answers.warn_of_failures()
    return answers.given[authority], answers.given


def _hosts(views: dict[str, NetworksView]) -> dict[str, HostNetworks]:
    return {name: view.own.networks() for name, view in views.items()}


def _no_way(host: str) -> str:
    return f"no migration can leave or reach {host}: none of its addresses is on a network that may be used"


def _said(changed: bool, dry_run: bool) -> str:
    if not changed:
        return "It is so already; nothing was changed."
    return "It would be so; nothing was changed." if dry_run else "It is so now."


def _parse_addresses(words: list[str]) -> tuple[str, ...]:
    """Addresses in their one spelling; none for ``any``. Raises Usage, BadSetting."""
    import ipaddress

    if words == ["any"]:
        return ()
    if "any" in words:
        raise Usage("'any' stands alone.", remedy="Write any, or the addresses that may be used.")
    try:
        wanted = tuple(str(ipaddress.ip_address(word)) for word in words)
    except ValueError as error:
        raise BadSetting(f"{error}.", remedy="Write addresses such as 10.1.0.1, or any.") from error
    if len(set(wanted)) < len(wanted):
        raise BadSetting("An address is named twice.", remedy="Name each once.")
    return wanted


def _check_present(own: HostNetworks, wanted: tuple[str, ...]) -> None:
    present = [text.partition("/")[0] for link in own.links for text in link.addresses]
    missing = [address for address in wanted if address not in present]
    if missing:
        raise BadSetting(
            f"{', '.join(missing)} is on no NIC of {own.host}, which has {', '.join(present) or 'no address'}.",
            remedy="'livemove network list' shows the addresses of all hosts.",
        )
