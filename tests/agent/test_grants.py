from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from livemove.agent.grants import MAX_CHARS, Grant, MemoryLedger, check_grant, issue_grant
from livemove.agent.identity import sign
from livemove.agent.join import LabHost, make_lab_cluster
from livemove.agent.token_text import open_token, seal_token
from livemove.api.client_identity import Identity, Role
from livemove.base.clock import ManualClock
from livemove.base.errors import NotPermitted

NOW_S = ManualClock().wall_s()
UUID = "7f0c1b7e-8a5b-4a53-9d0e-0d7f9f6b2a11"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    root: Path = tmp_path_factory.mktemp("cluster")
    return make_lab_cluster(
        [LabHost(name, root / name, f"192.0.2.{n}:7443") for n, name in enumerate(("alpha", "beta", "gamma"), start=1)],
        people={
            "ann": (Role.ADMIN, root / "ann"),
            "olga": (Role.OPERATOR, root / "olga"),
            "vic": (Role.VIEWER, root / "vic"),
        },
        clock=ManualClock(),
    )


def grant_of(cluster: dict[str, Identity], **changes: Any) -> str:
    values: dict[str, Any] = {
        "vm_uuid": UUID,
        "vm_name": "db1",
        "source": "alpha",
        "person": cluster["olga"].peer,
        "now_wall_s": NOW_S,
    }
    return issue_grant(cluster["beta"], **{**values, **changes})


def check(cluster: dict[str, Identity], token: str, **changes: Any) -> Grant:
    values: dict[str, Any] = {"vm_uuid": UUID, "source_peer": cluster["alpha"].peer, "now_wall_s": NOW_S + 1}
    return check_grant(token, cluster["beta"], **{**values, **changes})


def test_a_grant_says_what_was_asked_for(cluster: dict[str, Identity]) -> None:
    grant = check(cluster, grant_of(cluster))
    assert (grant.vm_uuid, grant.vm_name, grant.source, grant.destination) == (UUID, "db1", "alpha", "beta")
    assert (grant.person, grant.role) == ("olga", "operator")
    assert grant.person_fingerprint == cluster["olga"].fingerprint
    assert grant.expires_wall_s == NOW_S + 600
    assert check(cluster, grant_of(cluster, person=cluster["ann"].peer)).role == "admin"


def test_who_may_not_move_gets_none(cluster: dict[str, Identity]) -> None:
    for name in ("vic", "alpha"):
        with pytest.raises(NotPermitted, match="may not move"):
            grant_of(cluster, person=cluster[name].peer)
    with pytest.raises(NotPermitted, match="itself"):
        grant_of(cluster, source="beta")
    with pytest.raises(NotPermitted, match="Only a host"):
        issue_grant(
            cluster["ann"], vm_uuid=UUID, vm_name="a", source="alpha", person=cluster["ann"].peer, now_wall_s=NOW_S
        )
    with pytest.raises(NotPermitted, match="vm_name"):
        grant_of(cluster, vm_name="x" * 200)


def test_time(cluster: dict[str, Identity]) -> None:
    token = grant_of(cluster, lifetime_s=60)
    check(cluster, token, now_wall_s=NOW_S + 59.9)
    for late_s in (60, 61, 1e6):
        with pytest.raises(NotPermitted, match="expired"):
            check(cluster, token, now_wall_s=NOW_S + late_s)


def test_the_wrong_presenter_vm_or_host(cluster: dict[str, Identity]) -> None:
    token = grant_of(cluster)
    with pytest.raises(NotPermitted, match="for the source 'alpha', and 'gamma'"):
        check(cluster, token, source_peer=cluster["gamma"].peer)
    for person in ("ann", "olga"):
        with pytest.raises(NotPermitted, match="by the source host"):
            check(cluster, token, source_peer=cluster[person].peer)
    with pytest.raises(NotPermitted, match="for the VM"):
        check(cluster, token, vm_uuid=UUID.replace("7", "8"))
    with pytest.raises(NotPermitted, match="not signed by 'gamma'"):
        check_grant(token, cluster["gamma"], vm_uuid=UUID, source_peer=cluster["alpha"].peer, now_wall_s=NOW_S)


def test_a_grant_of_another_host_signed_by_it_is_refused(cluster: dict[str, Identity]) -> None:
    payload, _ = open_token(grant_of(cluster), "lmg1", parts=2, max_chars=MAX_CHARS, what="grant", remedy="")
    for signer in ("alpha", "gamma", "ann"):
        forged = seal_token("lmg1", payload, sign(cluster[signer], b"livemove grant 1\n" + payload))
        with pytest.raises(NotPermitted, match="not signed"):
            check(cluster, forged)


def test_a_signature_for_another_purpose_is_refused(cluster: dict[str, Identity]) -> None:
    payload, _ = open_token(grant_of(cluster), "lmg1", parts=2, max_chars=MAX_CHARS, what="grant", remedy="")
    with pytest.raises(NotPermitted, match="not signed"):
        check(cluster, seal_token("lmg1", payload, sign(cluster["beta"], payload)))


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("role", "viewer", "cannot be read"),
        ("role", "host", "cannot be read"),
        ("destination", "gamma", "for the destination"),
        ("id", "short", "cannot be read"),
        ("extra", "x", "cannot be read"),
        ("expires_wall_s", "1e11", "cannot be read"),
    ],
)
def test_a_well_signed_grant_is_checked_all_the_same(
    cluster: dict[str, Identity], field: str, value: Any, fault: str
) -> None:
    payload, _ = open_token(grant_of(cluster), "lmg1", parts=2, max_chars=MAX_CHARS, what="grant", remedy="")
    changed = json.dumps({**json.loads(payload), field: value}).encode()
    token = seal_token("lmg1", changed, sign(cluster["beta"], b"livemove grant 1\n" + changed))
    with pytest.raises(NotPermitted, match=fault):
        check(cluster, token)


@pytest.mark.parametrize("field", sorted(Grant.model_fields))
def test_an_altered_field_breaks_the_signature(cluster: dict[str, Identity], field: str) -> None:
    payload, signature = open_token(grant_of(cluster), "lmg1", parts=2, max_chars=MAX_CHARS, what="grant", remedy="")
    values = json.loads(payload)
    old = values[field]
    values[field] = old + 1000 if isinstance(old, float) else {"operator": "admin"}.get(old, old[::-1] + "a")
    altered = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    assert altered != payload
    with pytest.raises(NotPermitted, match="not signed"):
        check(cluster, seal_token("lmg1", altered, signature))


def test_every_single_changed_character_is_noticed(cluster: dict[str, Identity]) -> None:
    token = grant_of(cluster)
    for place in range(0, len(token), 7):
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(NotPermitted):
            check(cluster, token[:place] + other + token[place + 1 :])


def test_one_token_has_one_spelling(cluster: dict[str, Identity]) -> None:
    token = grant_of(cluster)
    for spelling in (token + "=", token + "\n", " " + token, token.replace("lmg1", "LMG1"), token + ".", token[:-1]):
        with pytest.raises(NotPermitted):
            check(cluster, spelling)


def test_a_ledger_takes_a_grant_once_and_forgets_after_expiry() -> None:
    clock = ManualClock()
    ledger = MemoryLedger(clock)
    assert ledger.consume("a", clock.wall_s() + 10)
    assert not ledger.consume("a", clock.wall_s() + 10)
    assert ledger.consume("b", clock.wall_s() + 100)
    clock.advance(11)
    assert not ledger.consume("b", clock.wall_s() + 89)
    assert len(ledger._used) == 1


@given(
    st.text(max_size=200)
    | st.binary(max_size=200).map(lambda raw: seal_token("lmg1", raw, raw))
    | st.binary(max_size=100).map(lambda raw: "lmg1." + base64.urlsafe_b64encode(raw).decode() + ".AAAA")
)
@example("lmg1." + "A" * (MAX_CHARS + 1))
@example("lmg1..")
@example("lmg1.\ud800.AA")
def test_garbage_raises_only_not_permitted(cluster: dict[str, Identity], token: str) -> None:
    with pytest.raises(NotPermitted):
        check(cluster, token)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "role", "x"]), inner),
        max_leaves=5,
    )
    | st.just("[" * 1500)
)
def test_well_signed_garbage_raises_only_not_permitted(cluster: dict[str, Identity], value: Any) -> None:
    payload = value.encode() if isinstance(value, str) and value[:2] == "[[" else json.dumps(value).encode()
    token = seal_token("lmg1", payload, sign(cluster["beta"], b"livemove grant 1\n" + payload))
    with pytest.raises(NotPermitted):
        check(cluster, token)
