"""The agent's directories at its start, with real modes and owners."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from livemove.agent.join import init_cluster
from livemove.agent.privacy import keep_private
from livemove.base.clock import SystemClock
from livemove.base.errors import NoIdentity, StateUnwritable


@pytest.fixture
def state(tmp_path: Path) -> Path:
    init_cluster(tmp_path / "s", name="alpha", address="192.0.2.1:1", clock=SystemClock())
    (tmp_path / "s" / "livemove.db").write_bytes(b"")
    return tmp_path / "s"


def test_what_was_left_open_is_closed_and_said(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = [state, state / "livemove.db", state / "authority", state / "identity" / "cluster.toml"]
    for path in opened:
        path.chmod(0o755 if path.is_dir() else 0o644)
    keep_private(state)
    assert not [path for path in (state, *state.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert len(caplog.records) == len(opened)
    caplog.clear()
    keep_private(state)
    assert not caplog.records


@pytest.mark.parametrize("key", ["identity/key.pem", "authority/ca.key"])
def test_a_key_that_was_open_to_all_is_refused(state: Path, key: str) -> None:
    (state / key).chmod(0o644)
    with pytest.raises(NoIdentity, match="open to every user"):
        keep_private(state)


def test_what_another_user_owns_is_refused(state: Path) -> None:
    os.chown(state / "authority", 65534, -1)
    with pytest.raises(StateUnwritable, match="belongs to user 65534"):
        keep_private(state)
