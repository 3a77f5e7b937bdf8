"""One lab for all cells."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.failover_matrix.harness import Matrix, matrix


@pytest.fixture(scope="module")
def played() -> Iterator[Matrix]:
    with matrix(f"fail-{os.getpid()}") as made:
        yield made
