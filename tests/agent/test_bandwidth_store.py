"""Bandwidth limits on disk: what was set is there again, and what cannot be written or read is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from livemove.agent.bandwidth_store import FILE, BandwidthStore
from livemove.base.errors import StateDamaged, StateUnwritable
from livemove.policy.bandwidth import Category, Limit, Selectors

LIMITS = {
    Category.LIVE_MIGRATION: Limit(Category.LIVE_MIGRATION, max_bytes_per_s=1_000_000_000, min_bytes_per_s=500_000),
    Category.VIRTUAL_MACHINE: Limit(
        Category.VIRTUAL_MACHINE, min_share=0.4, buffer=0.25,
        selectors=Selectors(("99", "6800-7568"), ("192.0.2.0/24",), ("a.slice",), ("nfs",)),
    ),
    Category.DEFAULT: Limit(Category.DEFAULT, min_share=0.1),
}  # fmt: skip


def test_what_was_set_is_there_again(tmp_path: Path) -> None:
    store = BandwidthStore(tmp_path / "state")
    assert store.limits == {}
    store.replace(LIMITS)
    assert store.limits == BandwidthStore(tmp_path / "state").limits == LIMITS
    store.replace({})
    assert BandwidthStore(tmp_path / "state").limits == {}
    assert [path.name for path in (tmp_path / "state").iterdir()] == [FILE]


def test_a_disk_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BandwidthStore(tmp_path)
    store.replace(LIMITS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateUnwritable, match="No space left"):
        store.replace({})
    assert store.limits == BandwidthStore(tmp_path).limits == LIMITS


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1]", "7", '"x"', '[{"category": "Storage"}]', '[{"category": "Default"}]', '[{"kategorie": 1}]',
        '[{"category": "Default", "min_percent": 101}]', '{"a": null}', "[null]",
    ],
)  # fmt: skip
def test_a_file_that_livemove_did_not_write(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(StateDamaged, match=FILE):
        BandwidthStore(tmp_path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StateDamaged, match="cannot be read"):
        BandwidthStore(tmp_path)
    (tmp_path / FILE).rmdir()
    (tmp_path / FILE).write_bytes(b"\xff")
    with pytest.raises(StateDamaged, match="cannot be read"):
        BandwidthStore(tmp_path)


def test_people_can_read_it(tmp_path: Path) -> None:
    BandwidthStore(tmp_path).replace(LIMITS)
    assert [entry["category"] for entry in json.loads((tmp_path / FILE).read_text())] == [
        "LiveMigration", "VirtualMachine", "Default",
    ]  # fmt: skip
