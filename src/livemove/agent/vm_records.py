"""VMs as the database remembers them."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, replace

from livemove.base.database import Database, reading
from livemove.base.errors import UnknownVm
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.process import QemuProcess

_COLUMNS = "name, uuid, definition, frozen, process, accelerator, moved_to, backing, arrived_in"


@dataclass(frozen=True, slots=True)
class VmRecord:
    """One VM of this host.

    :param definition: TOML as its author wrote it; newer than `frozen` when it was edited since the start.
    :param frozen: what runs; None while the VM is stopped.
    :param process: its QEMU; with `moved_to` one that is being ended.
    :param moved_to: host to which it moved; its definition moved with it.
    :param arrived_in: the journey that brought it, as long as nobody has started or stopped it here since.
    """

    name: str
    uuid: str
    definition: str
    frozen: FrozenVm | None = None
    process: QemuProcess | None = None
    accelerator: str = ""
    moved_to: str = ""
    backing: str = ""
    arrived_in: str = ""


class VmRecords:
    """All of them; small enough to be held in memory, written through."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records: dict[str, VmRecord] = {}

    async def load(self) -> None:
        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            return db.execute(f"SELECT {_COLUMNS} FROM vms ORDER BY name").fetchall()

        rows = await self._database.run(work, durable=False)
        self._records = {row["name"]: _record(row) for row in rows}

    def all(self) -> list[VmRecord]:
        return sorted(self._records.values(), key=lambda record: record.name)

    def find(self, name: str) -> VmRecord | None:
        return self._records.get(name)

    def get(self, name: str) -> VmRecord:
        """Raises UnknownVm."""
        record = self._records.get(name)
        if record is None:
            raise UnknownVm(f"This host has no VM '{name}'.")
        return record

    async def put(self, record: VmRecord) -> None:
        """Store `record`, durably."""
        await self._database.run(lambda db: self.put_within(db, record), durable=True)
        self._records[record.name] = record

    def put_within(self, db: sqlite3.Connection, record: VmRecord) -> None:
        """:meth:`put` as part of a transaction of the caller, who calls :meth:`remember` when it is committed."""
        db.execute(
            "INSERT OR REPLACE INTO vms (name, uuid, definition, frozen, process, accelerator, moved_to, backing, arrived_in)"
            " VALUES (?,?,?,?,?,?,?,?,?)",
            (
                record.name, record.uuid, record.definition, record.frozen.model_dump_json() if record.frozen else None,
                json.dumps(record.process.to_json()) if record.process else None, record.accelerator, record.moved_to,
                record.backing, record.arrived_in,
            ),
        )  # fmt: skip

    def remember(self, record: VmRecord) -> None:
        self._records[record.name] = record

    async def remove(self, name: str) -> None:
        await self._database.run(lambda db: self.remove_within(db, name), durable=True)
        self.forget(name)

    def remove_within(self, db: sqlite3.Connection, name: str) -> None:
        """:meth:`remove` as part of a transaction of the caller, who calls :meth:`forget` when it is committed."""
        db.execute("DELETE FROM vms WHERE name=?", (name,))

    def forget(self, name: str) -> None:
        self._records.pop(name, None)


def stopped(record: VmRecord, *, moved_to: str = "") -> VmRecord:
    """The record of a VM whose QEMU has ended here; one that moved stays so."""
    return replace(record, frozen=None, process=None, accelerator="", backing="", moved_to=moved_to or record.moved_to)


def _record(row: sqlite3.Row) -> VmRecord:
    with reading(f"VM '{row['name']}'"):
        return _vm_of(row)


def _vm_of(row: sqlite3.Row) -> VmRecord:
    texts = ("name", "uuid", "definition", "accelerator", "moved_to", "backing", "arrived_in")
    if not all(isinstance(row[column], str) for column in texts):
        raise ValueError("it is not made of texts")
    return VmRecord(
        row["name"], row["uuid"], row["definition"],
        FrozenVm.model_validate_json(row["frozen"]) if row["frozen"] else None,
        QemuProcess.from_json(json.loads(row["process"])) if row["process"] else None,
        row["accelerator"], row["moved_to"], row["backing"], row["arrived_in"],
    )  # fmt: skip
