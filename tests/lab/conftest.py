"""A lab of its own for each test, and proof that it left nothing behind."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemove.lab.lab import down, leftovers
from livemove.lab.registry import RUN_ROOT

_numbers = itertools.count()


@pytest.fixture
def lab_name() -> Iterator[str]:
    """A name that no other run uses; whatever the test left under it is removed, and is a failure if that does not work."""
    name = f"t{os.getpid()}-{next(_numbers)}"
    yield name
    asyncio.run(down(name))
    assert leftovers(name) == []
    assert not (RUN_ROOT / name).exists()
    assert not [path for path in Path("/run/netns").iterdir() if path.name.startswith(f"lm-{name}-")]
