"""The cells of the kill matrix that every test run plays; `make kill-matrix` plays all of them."""

from __future__ import annotations

import pytest
from tests.e2e.world import other
from tests.kill_matrix.cells import CELLS, COLUMNS, LEFT_OUT, NOT_IN_IT, VICTIMS, Cell
from tests.kill_matrix.harness import Matrix, Violation

from livemove.migration.points import DESTINATION_POINTS, POINTS

#: Asked only where the memory of both hosts differs.
DIFFERENCES = {f"destination.request.{moment}.{what}" for moment in ("before", "after") for what in ("pieces", "page")}
IN_CI = [cell for cell in CELLS if cell.in_ci]


def test_the_table_is_whole() -> None:
    rows = {(cell.point, cell.kind) for cell in CELLS}
    assert {cell.point for cell in CELLS} <= {*POINTS}
    assert len(CELLS) + sum(1 for point, victim in NOT_IN_IT for column in COLUMNS if column[0] == victim) == len(
        rows
    ) * len(COLUMNS)
    assert {victim for _, victim in NOT_IN_IT} <= {*LEFT_OUT}
    assert {cell.victim for cell in IN_CI} == {*VICTIMS} and {cell.how for cell in IN_CI} == {"kill", "stop", "drop"}
    assert len({cell.name for cell in CELLS}) == len(CELLS)


@pytest.mark.qemu
@pytest.mark.parametrize("cell", IN_CI, ids=[cell.name for cell in IN_CI])
def test_cell(played: Matrix, cell: Cell) -> None:
    try:
        played.play(cell)
    except Violation:
        played.restore()
        raise


@pytest.mark.qemu
def test_the_destination_s_points_were_reached(played: Matrix) -> None:
    """Those of the source are counted in migration/test_points.py, where its journeys are played without QEMUs."""
    source = played.guest.ensure_running()
    played.world.livemove("migrate", played.guest.name, "--to", other(source), "--verify", "full")
    assert {*DESTINATION_POINTS} - played.points_reached() == DIFFERENCES
