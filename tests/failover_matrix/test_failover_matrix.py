"""The cells of the failover matrix that every test run plays; `make failover-matrix` plays all of them."""

from __future__ import annotations

import pytest
from tests.failover_matrix.arriving import Reading, Stall, longest_stall
from tests.failover_matrix.cells import CELLS, FAULTS, MODES, MOMENTS, PATHS, Cell
from tests.failover_matrix.harness import Matrix, Violation

IN_CI = [cell for cell in CELLS if cell.in_ci]
#: A time that is too long once may be another program's fault; one that is always is ours.
TIMES = 3


def test_the_table_is_whole() -> None:
    plain = {(fault, path, moment, MODES[0]) for fault in FAULTS for path in PATHS for moment in MOMENTS}
    assert plain <= {(cell.fault, cell.path, cell.moment, cell.mode) for cell in CELLS}
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert {cell.path for cell in IN_CI} == {*PATHS} and {cell.mode for cell in IN_CI} == {*MODES}
    assert len(IN_CI) == 6 and any(cell.share is None for cell in IN_CI)


@pytest.mark.parametrize(
    ("arrived", "until_s", "stall"),
    [
        ([(0, 0), (1, 5), (2, 100), (3, 200), (6, 300), (7, 400)], 9, Stall(3, 3)),
        ([(0, 0), (1, 100), (2, 110), (3, 120), (4, 130), (5, 300)], 9, Stall(1, 4)),
        ([(0, 0), (1, 100), (2, 200), (3, 200), (9, 300)], 4, Stall(1, 1)),
        ([(0, 700), (1, 700), (5, 750), (6, 800), (7, 900)], 9, Stall(6, 1)),
        ([(0, 0), (1, 50)], 9, Stall(9, 0)),
    ],
    ids=["a pause", "a trickle", "only until then", "not before the first", "nothing came"],
)
def test_the_longest_stall(arrived: list[tuple[float, int]], until_s: float, stall: Stall) -> None:
    assert longest_stall([Reading(*each) for each in arrived], until_s, 100) == stall


@pytest.mark.qemu
@pytest.mark.parametrize("cell", IN_CI, ids=[cell.name for cell in IN_CI])
def test_cell(played: Matrix, cell: Cell) -> None:
    try:
        samples = [played.play(cell)]
        while samples[-1].too_long and len(samples) < TIMES:
            samples.append(played.play(cell))
    except Violation:
        played.restore()
        raise
    assert not samples[-1].too_long, samples
