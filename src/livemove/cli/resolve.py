"""``livemove resolve``: what is known of a VM that nobody owns for certain, and an operator's word that settles it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.errors import AgentUnreachable, Conflict, LinkError, NotRunning, UnknownVm
from livemove.cli.output import Usage, facts, print_json, say
from livemove.cli.verb import AsJson, VmName, complete_hosts, verb

if TYPE_CHECKING:
    from livemove.api.resolution_models import ResolutionView
    from livemove.cli.session import Session


@verb
async def resolve(
    vm: VmName,
    host_is_dead: Annotated[
        str | None,
        typer.Option(
            "--host-is-dead",
            metavar="HOST",
            help="Your word that HOST is fenced or without power: it does not run the VM. The other host then takes it.",
            autocompletion=complete_hosts,
        ),
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Take the VM over without letting it run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask back; for programs that fence hosts.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is known of a VM whose hand-over is not resolved, and what can be done about it.

    It resolves itself when both hosts can speak to each other again. Only when one of them will not come back is
    --host-is-dead the way: make sure first that the host is off, because a VM that runs twice destroys its disks.
    """
    from livemove.api.resolution_models import DeclareDead
    from livemove.cli.session import open_session

    async with open_session() as session:
        views = await _evidence(session, vm)
        if host_is_dead is None:
            _show(vm, views, as_json=as_json)
            return
        if not any(host_is_dead in (view.source, view.destination) for view in views):
            # one that has a part in it may have left the cluster; any other name that nobody knows is a slip
            await session.check_host(host_is_dead)
        view = _survivor(vm, views, host_is_dead)
        if not (dry_run or yes):
            _ask_back(vm, view, host_is_dead)
        said = DeclareDead(host=host_is_dead, paused=paused, dry_run=dry_run)
        answer = await (await session.agent(view.host)).declare_dead(vm, said)
    if as_json:
        print_json(answer)
    elif dry_run:
        say(f"{answer.host} would {answer.if_other_is_dead}. Nothing was done.")
    else:
        say(answer.done)


async def _evidence(session: Session, vm: str) -> list[ResolutionView]:
    """What each host knows. Raises NotRunning when nothing is unresolved, AgentUnreachable when nobody can tell."""
    answers = await session.ask(lambda agent: agent.resolution(vm))
    if not answers.given:
        silent = [host for host, error in answers.refused.items() if isinstance(error, LinkError)]
        if silent:
            raise AgentUnreachable(
                f"No host that answers knows of an unresolved VM '{vm}'; {', '.join(silent)} did not answer."
            )
        raise NotRunning(f"No hand-over of a VM '{vm}' is unresolved.", remedy="See 'livemove vm list'.")
    answers.warn_of_failures(expected=(UnknownVm,))
    return [view for _, view in sorted(answers.given.items())]


def _survivor(vm: str, views: list[ResolutionView], dead: str) -> ResolutionView:
    for view in views:
        if view.host != dead and dead in (view.source, view.destination):
            return view
    hosts = " and ".join(view.host for view in views)
    raise Conflict(
        f"{dead} has no part in what is unresolved of VM '{vm}' on {hosts}.", remedy=f"See 'livemove resolve {vm}'."
    )


def _ask_back(vm: str, view: ResolutionView, dead: str) -> None:
    """The word, given by typing the host's name. Raises Usage where nobody can be asked."""
    if not sys.stdin.isatty():
        raise Usage(
            "Nobody can be asked here whether the host is really dead.",
            remedy="Give your word with --yes if it is fenced.",
        )
    say(f"{view.host} would {view.if_other_is_dead}.")
    say(f"If {dead} is not off, VM {vm} may run twice and destroy its disks.")
    typed = typer.prompt(f"Is {dead} fenced or without power? Type its name to say so", default="", show_default=False)
    if typed.strip() != dead:
        raise Conflict(
            f"'{typed.strip()[:80]}' is not {dead}: nothing was done.", remedy="Repeat it when the host is off."
        )


def _show(vm: str, views: list[ResolutionView], *, as_json: bool) -> None:
    if as_json:
        print_json({"vm": vm, "evidence": views})
        return
    for view in views:
        other = view.destination if view.role == "source" else view.source
        facts(
            {
                f"{view.host} ({view.role})": f"journey {view.journey} from {view.source} to {view.destination}, {view.phase}",
                "its QEMU": view.qemu,
                f"{other} answers it": "yes: wait, it is being resolved" if view.other_answers else "no",
                "last word": view.last_word,
                f"were {other} dead": f"{view.host} would {view.if_other_is_dead}",
            }
        )
        if not view.other_answers and (view.has_all or view.role == "source"):
            say(f"  if {other} is fenced: livemove resolve {vm} --host-is-dead {other}")
    say("Otherwise bring the silent host or the network back; it is then resolved without you.")
