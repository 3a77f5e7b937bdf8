from __future__ import annotations

import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from hypothesis import example, given
from hypothesis import strategies as st

from livemove.agent.authority import create_authority, load_authority
from livemove.agent.identity import authority_dir, host_identity_dir
from livemove.agent.join import (
    PREFIX,
    JoinAnswer,
    JoinRequest,
    LabHost,
    finish_join,
    init_cluster,
    invite,
    issue_person,
    join_request,
    make_lab_cluster,
    parse_join_token,
    redeem,
)
from livemove.agent.join_client import CA_ROUTE, JOIN_ROUTE, join_cluster
from livemove.agent.tls_server import AgentServer
from livemove.agent.token_text import seal_token
from livemove.api.client_identity import Role, load_identity
from livemove.api.cluster_map import load_map
from livemove.base.clock import ManualClock, SystemClock
from livemove.base.errors import (
    AgentUnreachable,
    BadSetting,
    Conflict,
    LivemoveError,
    NoIdentity,
    NotPermitted,
    PeerViolation,
    StateUnwritable,
)

BETA = "192.0.2.2:7443"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def alpha(tmp_path: Path, clock: ManualClock) -> Path:
    """State directory of the authority's host."""
    init_cluster(
        tmp_path / "alpha", name="alpha", address="192.0.2.1:7443", admin="ann", admin_dir=tmp_path / "ann", clock=clock
    )
    return tmp_path / "alpha"


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_cluster_begins_with_a_host_and_an_admin(alpha: Path, tmp_path: Path) -> None:
    host, admin = load_identity(host_identity_dir(alpha)), load_identity(tmp_path / "ann")
    assert (host.name, host.role, admin.name, admin.role) == ("alpha", Role.HOST, "ann", Role.ADMIN)
    for identity in (host, admin):
        assert dict(load_map(identity.map_path).hosts) == {"alpha": "192.0.2.1:7443"}
        assert stat.S_IMODE(identity.key_path.stat().st_mode) == 0o600
        assert stat.S_IMODE(identity.directory.stat().st_mode) == 0o700


def test_beginning_twice_changes_nothing(alpha: Path, tmp_path: Path, clock: ManualClock) -> None:
    before = files_below(tmp_path)
    with pytest.raises(Conflict):
        init_cluster(alpha, name="other", address=BETA, clock=clock)
    with pytest.raises(Conflict):
        init_cluster(tmp_path / "x", name="x", address=BETA, admin="a", admin_dir=tmp_path / "ann", clock=clock)
    assert files_below(tmp_path) == before


def test_a_begin_that_fails_leaves_nothing(tmp_path: Path, clock: ManualClock) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StateUnwritable):
        init_cluster(tmp_path / "s", name="alpha", address=BETA, admin="ann", admin_dir=blocked / "ann", clock=clock)
    for bad in ({"name": "10.0.0.1", "address": BETA}, {"name": "a", "address": "0.0.0.0:1"}):
        with pytest.raises(BadSetting):
            init_cluster(tmp_path / "s", clock=clock, **bad)
    with pytest.raises(BadSetting):
        init_cluster(tmp_path / "s", name="a", address=BETA, admin="a b", admin_dir=tmp_path / "ann", clock=clock)
    assert files_below(tmp_path) == {str(blocked): b""}
    assert list((tmp_path / "s").iterdir()) == []


def test_a_host_joins(alpha: Path, tmp_path: Path, clock: ManualClock) -> None:
    pending = join_request(invite(alpha, "beta", clock=clock), address=BETA)
    answer = redeem(alpha, pending.request, clock=clock)
    identity = finish_join(pending, answer, tmp_path / "beta")
    assert (identity.name, identity.role) == ("beta", Role.HOST)
    for path in (identity.map_path, host_identity_dir(alpha) / "cluster.toml"):
        cluster = load_map(path)
        assert (cluster.address_of("beta"), cluster.serial, cluster.authority) == (BETA, 2, "alpha")


def test_the_secret_is_nowhere_in_the_state(alpha: Path, clock: ManualClock) -> None:
    token = parse_join_token(invite(alpha, "beta", clock=clock))
    kept = files_below(alpha)
    assert sum("invitations" in path for path in kept) == 1
    assert not any(token.secret.encode() in content or token.secret in path for path, content in kept.items())


def test_a_token_works_once(alpha: Path, clock: ManualClock) -> None:
    pending = join_request(invite(alpha, "beta", clock=clock), address=BETA)
    redeem(alpha, pending.request, clock=clock)
    with pytest.raises(NotPermitted, match="unknown, used or expired"):
        redeem(alpha, pending.request, clock=clock)


def test_a_token_used_by_many_at_once_works_once(alpha: Path, clock: ManualClock) -> None:
    token = invite(alpha, "beta", clock=clock)
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            redeem(alpha, join_request(token, address=BETA).request, clock=clock)
            outcomes.append("joined")
        except NotPermitted:
            outcomes.append("refused")

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["joined"] + ["refused"] * 7
    assert len(list((authority_dir(alpha) / "issued").iterdir())) == 3


def test_hosts_that_join_at_once_are_all_in_the_map(alpha: Path, clock: ManualClock) -> None:
    requests = [
        join_request(invite(alpha, f"h{n}", clock=clock), address=f"192.0.2.{n}:7443").request for n in range(10, 18)
    ]
    threads = [threading.Thread(target=redeem, args=(alpha, request), kwargs={"clock": clock}) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cluster = load_map(host_identity_dir(alpha) / "cluster.toml")
    assert set(cluster.hosts) == {"alpha", *(request.host for request in requests)}
    assert cluster.serial == 9


def test_a_token_expires(alpha: Path, clock: ManualClock) -> None:
    pending = join_request(invite(alpha, "beta", clock=clock, lifetime_s=60), address=BETA)
    clock.advance(60)
    with pytest.raises(NotPermitted, match="expired"):
        redeem(alpha, pending.request, clock=clock)
    for lifetime_s in (0, -1, 1e9, float("nan")):
        with pytest.raises(BadSetting):
            invite(alpha, "beta", clock=clock, lifetime_s=lifetime_s)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"secret": "0" * 64}, NotPermitted),
        ({"host": "gamma"}, NotPermitted),
        ({"signing_request": "rubbish"}, NotPermitted),
        ({"address": "nowhere"}, BadSetting),
        ({"address": "192.0.2.1:7443"}, Conflict),
    ],
)
def test_a_request_at_fault_is_refused_and_costs_no_invitation(
    alpha: Path, clock: ManualClock, change: dict[str, str], error: type[LivemoveError]
) -> None:
    pending = join_request(invite(alpha, "beta", clock=clock), address=BETA)
    before = files_below(alpha)
    with pytest.raises(error):
        redeem(alpha, JoinRequest(**{**pending.request.model_dump(), **change}), clock=clock)
    after = files_below(alpha)
    after.pop(str(authority_dir(alpha) / "lock"), None)
    before.pop(str(authority_dir(alpha) / "lock"), None)
    assert after == before
    redeem(alpha, pending.request, clock=clock)


def test_names_are_taken_whatever_their_case(alpha: Path, clock: ManualClock) -> None:
    first, second = (invite(alpha, "beta", clock=clock) for _ in range(2))
    redeem(alpha, join_request(first, address=BETA).request, clock=clock)
    with pytest.raises(Conflict, match="already has the host 'beta'"):
        redeem(alpha, join_request(second, address="192.0.2.3:7443").request, clock=clock)
    for name in ("beta", "BETA", "Alpha"):
        with pytest.raises(Conflict):
            invite(alpha, name, clock=clock)
    with pytest.raises(Conflict, match="authority"):
        invite(alpha, "alpha", clock=clock, replace=True)


def test_a_host_installed_anew_replaces_itself(alpha: Path, clock: ManualClock) -> None:
    redeem(alpha, join_request(invite(alpha, "beta", clock=clock), address=BETA).request, clock=clock)
    again = join_request(invite(alpha, "beta", clock=clock, replace=True), address="192.0.2.9:7443")
    redeem(alpha, again.request, clock=clock)
    assert load_map(host_identity_dir(alpha) / "cluster.toml").address_of("beta") == "192.0.2.9:7443"


def test_invitations_are_bounded_and_expired_ones_go(
    alpha: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livemove.agent.invitations.MAX_INVITATIONS", 2)
    for _ in range(2):
        invite(alpha, "beta", clock=clock)
    with pytest.raises(Conflict, match="2 invitations"):
        invite(alpha, "beta", clock=clock)
    clock.advance(601)
    invite(alpha, "beta", clock=clock)
    assert len(list((authority_dir(alpha) / "invitations").iterdir())) == 1


def test_only_the_authority_invites_and_issues(tmp_path: Path, clock: ManualClock) -> None:
    hosts = [LabHost(name, tmp_path / name, f"192.0.2.{n}:1") for n, name in enumerate(("alpha", "beta"), start=1)]
    make_lab_cluster(hosts, people={}, clock=clock)
    with pytest.raises(NoIdentity, match="does not hold"):
        invite(tmp_path / "beta", "gamma", clock=clock)
    with pytest.raises(NoIdentity, match="does not hold"):
        issue_person(tmp_path / "beta", name="eve", role=Role.ADMIN, directory=tmp_path / "eve", clock=clock)
    assert not (tmp_path / "eve").exists()


def test_a_person_gets_an_identity_with_the_whole_map(alpha: Path, tmp_path: Path, clock: ManualClock) -> None:
    redeem(alpha, join_request(invite(alpha, "beta", clock=clock), address=BETA).request, clock=clock)
    identity = issue_person(alpha, name="olga", role=Role.OPERATOR, directory=tmp_path / "olga", clock=clock)
    assert (identity.name, identity.role) == ("olga", Role.OPERATOR)
    assert set(load_map(identity.map_path).hosts) == {"alpha", "beta"}
    with pytest.raises(Conflict):
        issue_person(alpha, name="olga", role=Role.ADMIN, directory=tmp_path / "olga", clock=clock)


def test_a_lab_cluster_is_one_cluster(tmp_path: Path, clock: ManualClock) -> None:
    names = ("alpha", "beta", "gamma")
    identities = make_lab_cluster(
        [LabHost(name, tmp_path / name, f"192.0.2.{n}:1") for n, name in enumerate(names, start=1)],
        people={"vic": (Role.VIEWER, tmp_path / "vic")},
        clock=clock,
    )
    assert {name: identity.role for name, identity in identities.items()} == {
        **dict.fromkeys(names, Role.HOST),
        "vic": Role.VIEWER,
    }
    assert len({identity.ca_path.read_bytes() for identity in identities.values()}) == 1
    assert len({identity.key_path.read_bytes() for identity in identities.values()}) == 4
    assert all(set(load_map(identity.map_path).hosts) == set(names) for identity in identities.values())


def test_an_answer_that_is_not_what_was_asked_for_is_not_kept(alpha: Path, tmp_path: Path, clock: ManualClock) -> None:
    pending = join_request(invite(alpha, "beta", clock=clock), address=BETA)
    answer = redeem(alpha, pending.request, clock=clock)
    authority = load_authority(authority_dir(alpha))
    foreign = create_authority(tmp_path / "foreign", clock=clock)
    request = pending.request.signing_request
    wrong: list[tuple[dict[str, object], type[LivemoveError], str]] = [
        ({"ca": foreign.ca_pem}, NotPermitted, "not the authority of the token"),
        ({"ca": "rubbish"}, NotPermitted, "did not send"),
        ({"certificate": "rubbish"}, NotPermitted, "not issued"),
        ({"certificate": foreign.issue_host(request, name="beta", clock=clock)}, NotPermitted, "not issued"),
        ({"certificate": authority.issue_host(request, name="x", clock=clock)}, NotPermitted, "of host 'x'"),
        (
            {"certificate": authority.issue_person(request, name="beta", role=Role.ADMIN, clock=clock)},
            NotPermitted,
            "of admin 'beta'",
        ),
        ({"cluster": {"authority": "alpha", "serial": 2, "hosts": {}}}, PeerViolation, "does not have 'beta'"),
        ({"cluster": {"hosts": 7}}, PeerViolation, "not one"),
    ]
    for change, error, fault in wrong:
        with pytest.raises(error, match=fault):
            finish_join(pending, JoinAnswer.model_validate({**answer.model_dump(), **change}), tmp_path / "beta")
    assert not (tmp_path / "beta").exists()
    finish_join(pending, answer, tmp_path / "beta")


def test_an_altered_token_is_refused(alpha: Path, clock: ManualClock) -> None:
    token = invite(alpha, "beta", clock=clock)
    assert parse_join_token(f"  {token}\n").host == "beta"
    for altered in (token[:-3], token + "A", token.replace("lmj1", "lmj2"), token.upper(), "lmg1" + token[4:], ""):
        with pytest.raises(NotPermitted):
            parse_join_token(altered)


@given(
    st.text(max_size=200)
    | st.binary(max_size=200).map(lambda raw: seal_token(PREFIX, raw))
    | st.from_regex(r'\{"secret":"[0-9a-f]{64}","host":"[^"\\]{0,20}"\}').map(
        lambda text: seal_token(PREFIX, text.encode("utf-8", "ignore"))
    )
)
@example("lmj1." + "A" * 3000)
@example(seal_token(PREFIX, b"[" * 1500))
def test_garbage_tokens_raise_only_not_permitted(text: str) -> None:
    with pytest.raises(NotPermitted):
        parse_join_token(text)


# Over real sockets ----------------------------------------------------------------------------------------------------


class Served:
    """The authority's agent with the two open routes, as the agent's application has them."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.requests: list[str] = []
        self.ca: str | None = None
        app = FastAPI()
        clock = SystemClock()

        @app.exception_handler(LivemoveError)
        async def failed(request: Request, error: LivemoveError) -> JSONResponse:
            return JSONResponse(error.to_json(), status_code=403)

        @app.get(CA_ROUTE)
        async def ca() -> dict[str, str]:
            self.requests.append("ca")
            return {"ca": self.ca or load_authority(authority_dir(state_dir)).ca_pem}

        @app.post(JOIN_ROUTE)
        async def join(body: JoinRequest) -> JoinAnswer:
            self.requests.append("join")
            return redeem(state_dir, body, clock=clock)

        self.app = app


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    state_dir = tmp_path / "alpha"
    (host,) = make_lab_cluster([LabHost("alpha", state_dir, "127.0.0.1:1")], people={}, clock=SystemClock()).values()
    agent = Served(state_dir)
    server = AgentServer(agent.app, address="127.0.0.1:0", identity=host)
    await server.start()
    map_path = host.map_path
    map_path.write_text(map_path.read_text().replace("127.0.0.1:1", server.address))
    yield agent
    await server.close()


async def test_a_host_joins_over_the_network(served: Served, tmp_path: Path) -> None:
    token = invite(served.state_dir, "beta", clock=SystemClock())
    identity = await join_cluster(token, address="127.0.0.1:7002", state_dir=tmp_path / "beta")
    assert identity.directory == host_identity_dir(tmp_path / "beta")
    assert (identity.name, identity.role) == ("beta", Role.HOST)
    assert load_map(identity.map_path).address_of("beta") == "127.0.0.1:7002"
    with pytest.raises(Conflict):
        await join_cluster(token, address="127.0.0.1:7002", state_dir=tmp_path / "beta")
    with pytest.raises(NotPermitted, match="unknown, used or expired"):
        await join_cluster(token, address="127.0.0.1:7003", state_dir=tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert served.requests == ["ca", "join", "ca", "join"]


async def test_the_secret_is_not_sent_to_another_authority(served: Served, tmp_path: Path) -> None:
    token = invite(served.state_dir, "beta", clock=SystemClock())
    served.ca = create_authority(tmp_path / "foreign", clock=SystemClock()).ca_pem
    with pytest.raises(NotPermitted, match="not the authority of the token"):
        await join_cluster(token, address="127.0.0.1:7002", state_dir=tmp_path / "beta")
    assert served.requests == ["ca"]
    assert not (tmp_path / "beta").exists()


async def test_the_secret_is_not_sent_to_one_who_only_shows_the_right_authority(served: Served, tmp_path: Path) -> None:
    """Somebody in between can repeat the authority's certificate, which is public, but not prove the name."""
    token = invite(served.state_dir, "beta", clock=SystemClock())
    impostor = Served(tmp_path / "evil")
    impostor.ca = load_authority(authority_dir(served.state_dir)).ca_pem
    (evil,) = make_lab_cluster(
        [LabHost("alpha", tmp_path / "evil", "127.0.0.1:1")], people={}, clock=SystemClock()
    ).values()
    server = AgentServer(impostor.app, address="127.0.0.1:0", identity=evil)
    await server.start()
    try:
        said = parse_join_token(token).model_copy(update={"address": server.address})
        redirected = seal_token(PREFIX, said.model_dump_json().encode())
        with pytest.raises(NotPermitted, match="does not prove to be 'alpha'"):
            await join_cluster(redirected, address="127.0.0.1:7002", state_dir=tmp_path / "beta")
    finally:
        await server.close()
    assert impostor.requests == ["ca"]


async def test_an_authority_that_does_not_answer(served: Served, tmp_path: Path, unused_tcp_port: int) -> None:
    said = parse_join_token(invite(served.state_dir, "beta", clock=SystemClock()))
    said = said.model_copy(update={"address": f"127.0.0.1:{unused_tcp_port}"})
    with pytest.raises(AgentUnreachable):
        await join_cluster(
            seal_token(PREFIX, said.model_dump_json().encode()), address=BETA, state_dir=tmp_path / "beta"
        )
