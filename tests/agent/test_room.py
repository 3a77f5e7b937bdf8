"""Room for a journey, on real small file systems and with real limits of this process."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemove.agent.room import LEAST_DESCRIPTORS, check_room, descriptors_left, raise_descriptor_limit
from livemove.base.errors import MissingPrerequisite, NotEnoughMemory, OperatorError, StateUnwritable
from livemove.base.settings import HostSettings
from livemove.base.shortage import shortage_of


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB and 100 files."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=100", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def settings(tmp_path: Path, **changes: object) -> HostSettings:
    known = {"name": "B", "state_dir": tmp_path / "s", "run_dir": tmp_path / "r", "disk_reserve": "1MiB"}
    return HostSettings.model_validate({**known, **changes})


def test_enough_of_everything(tmp_path: Path) -> None:
    check_room(settings(tmp_path))


@pytest.mark.qemu
@pytest.mark.parametrize("name", ["state_dir", "run_dir"])
def test_a_full_file_system_of_either_directory(tmp_path: Path, small: Path, name: str) -> None:
    here = settings(tmp_path, **{name: small})
    check_room(here)
    (small / "filler").write_bytes(bytes(3 << 19))
    with pytest.raises(
        StateUnwritable, match=rf"'{name}' of B\) has 512.0 KiB of space left.* needs 1.0 MiB"
    ) as caught:
        check_room(here)
    assert "disk_reserve" in caught.value.remedy and caught.value.where == "B"
    check_room(settings(tmp_path, **{name: small, "disk_reserve": "256KiB"}))


@pytest.mark.qemu
def test_no_file_can_be_made(tmp_path: Path, small: Path) -> None:
    for number in range(80):
        (small / str(number)).touch()
    with pytest.raises(StateUnwritable, match=r"can take 1[0-9] more files"):
        check_room(settings(tmp_path, state_dir=small))


@pytest.mark.qemu
def test_read_only(tmp_path: Path, small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with pytest.raises(StateUnwritable, match="read-only file system"):
        check_room(settings(tmp_path, run_dir=small))
    with pytest.raises(StateUnwritable, match="cannot be used: Read-only"):
        check_room(settings(tmp_path, run_dir=small / "below"))


def test_descriptors(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + LEAST_DESCRIPTORS // 2, before[1]))
        assert LEAST_DESCRIPTORS // 2 - 2 <= descriptors_left() <= LEAST_DESCRIPTORS // 2
        with pytest.raises(MissingPrerequisite, match=f"more files, and a journey needs {LEAST_DESCRIPTORS}"):
            check_room(settings(tmp_path))
        raise_descriptor_limit()
        check_room(settings(tmp_path))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        assert descriptors_left() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EMFILE, MissingPrerequisite), (errno.ENFILE, MissingPrerequisite), (errno.ENOSPC, StateUnwritable),
     (errno.EDQUOT, StateUnwritable), (errno.EROFS, StateUnwritable), (errno.ENOMEM, NotEnoughMemory)],
)  # fmt: skip
def test_what_the_kernel_says_is_missing(number: int, kind: type[OperatorError]) -> None:
    found = shortage_of(OSError(number, os.strerror(number), "/run/x"))
    assert type(found) is kind and found.message.endswith(".") and found.remedy


def test_other_words_of_the_kernel_are_no_shortage() -> None:
    assert shortage_of(OSError(errno.EPERM, "no")) is None and shortage_of(OSError("words")) is None
