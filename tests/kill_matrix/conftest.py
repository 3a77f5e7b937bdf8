"""One lab with armed agents for all cells."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.kill_matrix.harness import Matrix, matrix


@pytest.fixture(scope="module")
def played() -> Iterator[Matrix]:
    with matrix(f"kill-{os.getpid()}") as made:
        yield made
