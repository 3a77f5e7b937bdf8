"""A minimum holds against flows that nothing else limits; with real packets, and margins for a busy machine.

``python -m tests.bandwidth`` measures the same and more, exactly.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from tests.bandwidth.scenes import SCENES, measure

pytestmark = pytest.mark.qemu
SCENE = {scene.name: scene for scene in SCENES}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert "lmband" not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["in", "nic-dies-out"])
def test_others_keep_their_minimum_and_alone_migration_has_the_wire(name: str) -> None:
    found = measure(SCENE[name], seconds=6)
    assert found.others_worst is not None and found.others_worst >= 0.85, found
    assert found.migration_before is not None and found.migration_before >= 0.9, found
    assert found.clean


def test_without_limits_they_do_not() -> None:
    """What the tests above show is the governor's doing."""
    found = measure(SCENE["without-limits"], seconds=6)
    assert found.others_worst is not None and found.others_worst < 0.85, found
