"""Certificates after they were issued: listed, revoked, renewed; hosts taken out. On real files, with a clock of the test's."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from livemove.agent.authority import HOST_VALIDITY_S, create_authority, new_key, signing_request
from livemove.agent.identity import host_identity_dir, sign, signed_by
from livemove.agent.join import LabHost, issue_person, make_lab_cluster
from livemove.agent.membership import Membership
from livemove.agent.renewal import MAX_VALID_EACH, is_due, renew_for, renew_own, renew_person
from livemove.agent.revoking import issued_certificates, remove_host, revoke
from livemove.api.client_identity import Identity, Role, load_identity
from livemove.api.cluster_map import load_map
from livemove.api.models import RenewRequest
from livemove.api.revocations import REVOKED_FILE, read_revocations
from livemove.base.clock import ManualClock
from livemove.base.errors import BadSetting, Conflict, NoIdentity, NotPermitted, PeerViolation, UnknownHost

DAY_S = 86_400.0


class Cluster:
    def __init__(self, root: Path) -> None:
        self.clock = ManualClock()
        self.alpha, self.beta = root / "alpha", root / "beta"
        self.identities: dict[str, Identity] = make_lab_cluster(
            [LabHost("alpha", self.alpha, "192.0.2.1:1"), LabHost("beta", self.beta, "192.0.2.2:1")],
            people={"ann": (Role.ADMIN, root / "ann"), "vic": (Role.VIEWER, root / "vic")},
            clock=self.clock,
        )

    def states(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for each in issued_certificates(self.alpha):
            found.setdefault(each.peer.name, []).append(each.state(self.clock.wall_s()))
        return found

    def list_of(self, state_dir: Path) -> frozenset[str]:
        return Membership(host_identity_dir(state_dir)).revocations.serials


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_every_certificate_is_listed_with_its_days(cluster: Cluster) -> None:
    assert cluster.states() == {"alpha": ["valid"], "beta": ["valid"], "ann": ["valid"], "vic": ["valid"]}
    cluster.clock.advance(91 * DAY_S)
    assert cluster.states() == {"alpha": ["valid"], "beta": ["valid"], "ann": ["expired"], "vic": ["expired"]}
    days = {each.peer.name: each.days_left(cluster.clock.wall_s()) for each in issued_certificates(cluster.alpha)}
    assert 273 < days["beta"] < 275 and -2 < days["ann"] < 0
    with pytest.raises(NoIdentity):
        issued_certificates(cluster.beta)


def test_revoking_by_name_takes_all_of_a_person_and_is_idempotent(cluster: Cluster, tmp_path: Path) -> None:
    second = issue_person(
        cluster.alpha, name="vic", role=Role.OPERATOR, directory=tmp_path / "vic2", clock=cluster.clock
    )
    both = {cluster.identities["vic"].peer.serial, second.peer.serial}
    assert {each.peer.serial for each in revoke(cluster.alpha, "vic", clock=cluster.clock, dry_run=True)} == both
    assert cluster.list_of(cluster.alpha) == frozenset(), "a dry run changes nothing"
    assert {each.peer.serial for each in revoke(cluster.alpha, "vic", clock=cluster.clock)} == both
    assert cluster.list_of(cluster.alpha) == both
    before = (host_identity_dir(cluster.alpha) / REVOKED_FILE).read_bytes()
    assert revoke(cluster.alpha, "vic", clock=cluster.clock) == []
    assert (host_identity_dir(cluster.alpha) / REVOKED_FILE).read_bytes() == before


def test_revoking_one_serial_leaves_the_others(cluster: Cluster, tmp_path: Path) -> None:
    second = issue_person(cluster.alpha, name="vic", role=Role.VIEWER, directory=tmp_path / "v2", clock=cluster.clock)
    revoke(cluster.alpha, second.peer.serial, clock=cluster.clock)
    assert cluster.list_of(cluster.alpha) == {second.peer.serial}
    assert cluster.states()["vic"].count("valid") == 1


def test_what_cannot_be_revoked(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no certificate to 'eve'"):
        revoke(cluster.alpha, "eve", clock=cluster.clock)
    with pytest.raises(NotPermitted, match="holds the cluster's authority"):
        revoke(cluster.alpha, "alpha", clock=cluster.clock)
    issue_person(cluster.alpha, name="beta", role=Role.VIEWER, directory=tmp_path / "b", clock=cluster.clock)
    with pytest.raises(Conflict, match="a host and a person"):
        revoke(cluster.alpha, "beta", clock=cluster.clock)
    with pytest.raises(NoIdentity):
        revoke(cluster.beta, "vic", clock=cluster.clock)
    assert cluster.list_of(cluster.alpha) == frozenset()


def test_the_list_forgets_what_has_expired(cluster: Cluster) -> None:
    revoke(cluster.alpha, "vic", clock=cluster.clock)
    cluster.clock.advance(91 * DAY_S)
    (gone,) = revoke(cluster.alpha, "beta", clock=cluster.clock)
    assert cluster.list_of(cluster.alpha) == {gone.peer.serial}


def test_a_host_that_is_removed_is_out_of_the_map_and_revoked(cluster: Cluster) -> None:
    map_path = cluster.identities["alpha"].map_path
    serial = load_map(map_path).serial
    assert len(remove_host(cluster.alpha, "beta", clock=cluster.clock, dry_run=True)) == 1
    assert "beta" in load_map(map_path).hosts
    (gone,) = remove_host(cluster.alpha, "beta", clock=cluster.clock)
    assert gone.peer.serial == cluster.identities["beta"].peer.serial
    assert "beta" not in load_map(map_path).hosts and load_map(map_path).serial == serial + 1
    assert remove_host(cluster.alpha, "beta", clock=cluster.clock) == []
    assert load_map(map_path).serial == serial + 1, "removing it again changes nothing"
    with pytest.raises(UnknownHost):
        remove_host(cluster.alpha, "gamma", clock=cluster.clock)
    with pytest.raises(NotPermitted):
        remove_host(cluster.alpha, "alpha", clock=cluster.clock)


def test_a_list_is_believed_only_signed_and_newer(cluster: Cluster, tmp_path: Path) -> None:
    revoke(cluster.alpha, "vic", clock=cluster.clock)
    older = Membership(host_identity_dir(cluster.alpha)).revocations.pem
    revoke(cluster.alpha, "ann", clock=cluster.clock)
    newer = Membership(host_identity_dir(cluster.alpha)).revocations.pem
    beta = Membership(host_identity_dir(cluster.beta))
    assert beta.learn(newer) and beta.is_revoked(cluster.identities["ann"].peer.serial)
    assert not beta.learn(older) and not beta.learn("") and beta.is_revoked(cluster.identities["ann"].peer.serial)
    foreign = Cluster(tmp_path / "foreign")
    revoke(foreign.alpha, "vic", clock=cluster.clock)
    forged = Membership(host_identity_dir(foreign.alpha)).revocations.pem
    for bad in (forged, newer[:200], "rubbish", newer.replace("M", "N", 1), "x" * (1 << 20)):
        with pytest.raises(PeerViolation):
            beta.learn(bad)
    assert Membership(host_identity_dir(cluster.beta)).revocations == beta.revocations, "kept across a restart"


def test_an_older_file_put_in_its_place_is_not_used(cluster: Cluster) -> None:
    path = host_identity_dir(cluster.alpha) / REVOKED_FILE
    revoke(cluster.alpha, "vic", clock=cluster.clock)
    old = path.read_bytes()
    revoke(cluster.alpha, "ann", clock=cluster.clock)
    membership = Membership(host_identity_dir(cluster.alpha))
    for content in (old, b"rubbish"):
        path.with_suffix(".new").write_bytes(content)
        path.with_suffix(".new").replace(path)
        assert membership.changed()
        assert membership.is_revoked(cluster.identities["ann"].peer.serial)
    assert not membership.changed()


# Renewal --------------------------------------------------------------------------------------------------------------


async def test_a_host_renews_when_a_third_is_left_and_keeps_its_key(cluster: Cluster) -> None:
    first = load_identity(host_identity_dir(cluster.alpha))
    signature = sign(first, b"a grant")
    assert not (await renew_own(cluster.alpha, clock=cluster.clock)).renewed
    cluster.clock.advance(HOST_VALIDITY_S * 0.7)
    assert is_due(first, cluster.clock.wall_s())
    planned = await renew_own(cluster.alpha, clock=cluster.clock, dry_run=True)
    assert planned.due and not planned.renewed
    assert load_identity(host_identity_dir(cluster.alpha)).fingerprint == first.fingerprint
    done = await renew_own(cluster.alpha, clock=cluster.clock)
    second = load_identity(host_identity_dir(cluster.alpha))
    assert done.renewed and 364 < done.days_left < 366
    assert second.fingerprint != first.fingerprint and second.peer.name == "alpha" and second.role is Role.HOST
    assert signed_by(second, b"a grant", signature), "grants given before are still good"
    assert not (await renew_own(cluster.alpha, clock=cluster.clock)).renewed
    assert (await renew_own(cluster.alpha, clock=cluster.clock, force=True)).renewed


def test_only_hosts_of_the_map_get_a_new_certificate(cluster: Cluster) -> None:
    asked = RenewRequest(signing_request=signing_request(new_key(), "x"))
    beta, ann = cluster.identities["beta"].peer, cluster.identities["ann"].peer
    with pytest.raises(NotPermitted, match="no host of the cluster"):
        renew_for(cluster.alpha, ann, asked, clock=cluster.clock)
    with pytest.raises(NoIdentity):
        renew_for(cluster.beta, beta, asked, clock=cluster.clock)
    with pytest.raises(NotPermitted):
        renew_for(cluster.alpha, beta, RenewRequest(signing_request="rubbish"), clock=cluster.clock)
    for _ in range(MAX_VALID_EACH - 1):
        renew_for(cluster.alpha, beta, asked, clock=cluster.clock)
    with pytest.raises(Conflict, match="16 valid certificates"):
        renew_for(cluster.alpha, beta, asked, clock=cluster.clock)
    remove_host(cluster.alpha, "beta", clock=cluster.clock)
    with pytest.raises(NotPermitted):
        renew_for(cluster.alpha, beta, asked, clock=cluster.clock)


def test_a_persons_renewal_keeps_key_and_role(cluster: Cluster, tmp_path: Path) -> None:
    first, day = cluster.identities["vic"], DAY_S
    key = first.key_path.read_bytes()
    cluster.clock.advance(80 * day)
    second = renew_person(cluster.alpha, first.directory, "vic", clock=cluster.clock, validity_s=90 * day)
    assert second.role is Role.VIEWER and second.key_path.read_bytes() == key
    assert second.peer.not_after_wall_s - first.peer.not_after_wall_s == pytest.approx(80 * day, abs=2)
    with pytest.raises(Conflict, match="identity of viewer 'vic'"):
        renew_person(cluster.alpha, first.directory, "ann", clock=cluster.clock, validity_s=day)
    revoke(cluster.alpha, "vic", clock=cluster.clock)
    with pytest.raises(NotPermitted, match="was revoked"):
        renew_person(cluster.alpha, first.directory, "vic", clock=cluster.clock, validity_s=day)
    foreign = Cluster(tmp_path / "foreign").identities["vic"]
    with pytest.raises(NotPermitted, match="not issued by this authority"):
        renew_person(cluster.alpha, foreign.directory, "vic", clock=cluster.clock, validity_s=day)


def test_the_authoritys_own_signature_is_checked_against_every_ca_of_the_file(tmp_path: Path) -> None:
    """While the authority is exchanged, ca.pem holds both."""
    clock = ManualClock()
    old, new = (create_authority(tmp_path / name, clock=clock) for name in ("old", "new"))
    moment = datetime.datetime.fromtimestamp(clock.wall_s(), tz=datetime.UTC)
    pem = new.sign_revocations([7], 1, moment)
    assert read_revocations(pem, old.ca_pem + new.ca_pem).serials == {"7"}
    with pytest.raises(PeerViolation, match="not signed"):
        read_revocations(pem, old.ca_pem)
