"""Where paths really lead, with real links and real images."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest

from livemove.agent.paths import check_paths
from livemove.base.errors import PolicyRefused


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"x" * 65536)
    directory = tmp_path / "disks"
    directory.mkdir()
    (directory / "a.raw").write_bytes(b"x")
    return directory


def judge(path: Path, disks: Path, *, image: bool = False) -> None:
    check_paths([str(path)], [str(path)] if image else [], [str(disks)], "B")


def refused(path: Path, disks: Path, *, image: bool = False) -> str:
    with pytest.raises(PolicyRefused) as caught:
        judge(path, disks, image=image)
    return caught.value.message


def make_image(path: Path, *, backing: str = "", data_file: str = "") -> None:
    """A qcow2 header of version 3, as its specification lays it out: what it names is all that counts here."""
    extension = b""
    if data_file:
        name = data_file.encode()
        extension = struct.pack(">II", 0x44415441, len(name)) + name + bytes(-len(name) % 8)
    names_at = 104 + len(extension) + 8
    fields = (0x514649FB, 3, names_at if backing else 0, len(backing), 16, 1 << 20, 0, 1, 0x30000, 0x10000, 1, 0, 0)
    head = struct.pack(">IIQIIQIIQQIIQ", *fields) + struct.pack(">QQQII", 4 if data_file else 0, 0, 0, 4, 104)
    path.write_bytes((head + extension + bytes(8) + backing.encode()).ljust(65536, b"\0"))


def test_what_lies_inside_is_admitted_and_what_is_missing_too(disks: Path) -> None:
    judge(disks / "a.raw", disks)
    judge(disks / "not-there", disks)
    judge(disks / "sub" / ".." / "a.raw", disks)
    check_paths(["/etc/shadow"], [], ["/srv", "/"], "B")


def test_a_path_cannot_climb_or_link_out(disks: Path, tmp_path: Path) -> None:
    (disks / "link").symlink_to(tmp_path / "secret")
    (disks / "out").symlink_to(tmp_path)
    (disks / "chain").symlink_to(disks / "link")
    (disks / "dangling").symlink_to("/nonexistent/later")
    for name in ("../secret", "link", "out/secret", "chain", "dangling", "out/disks/../secret"):
        assert "outside the directories that B allows" in refused(disks / name, disks), name
    assert f"leads to {tmp_path / 'secret'}" in refused(disks / "link", disks)
    assert refused(Path("relative"), disks)
    # a neighbour whose name begins alike
    assert refused(Path(f"{disks}-more") / "a.raw", disks)


def test_links_that_stay_inside_and_an_allowed_directory_that_is_a_link_are_fine(disks: Path, tmp_path: Path) -> None:
    (disks / "inner").symlink_to(disks / "a.raw")
    judge(disks / "inner", disks)
    (tmp_path / "alias").symlink_to(disks)
    check_paths([str(disks / "a.raw"), str(tmp_path / "alias" / "a.raw")], [], [str(tmp_path / "alias")], "B")


def test_what_an_image_names_is_judged_too(disks: Path, tmp_path: Path) -> None:
    make_image(disks / "base.qcow2")
    make_image(disks / "good.qcow2", backing="base.qcow2")
    judge(disks / "good.qcow2", disks, image=True)
    secret = str(tmp_path / "secret")
    make_image(disks / "backed.qcow2", backing=secret)
    make_image(disks / "second.qcow2", backing="backed.qcow2")
    make_image(disks / "data.qcow2", data_file=secret)
    make_image(disks / "remote.qcow2", backing="nbd://192.0.2.1/x")
    make_image(disks / "json.qcow2", backing='json:{"driver":"file","filename":"/etc/shadow"}')
    for name in ("backed", "second", "data", "remote", "json"):
        assert "is outside the directories" in refused(disks / f"{name}.qcow2", disks, image=True), name


def test_images_that_name_each_other_end(disks: Path) -> None:
    make_image(disks / "one.qcow2")
    make_image(disks / "two.qcow2", backing="one.qcow2")
    make_image(disks / "one.qcow2", backing="two.qcow2")
    judge(disks / "two.qcow2", disks, image=True)


def test_a_damaged_image_raises_nothing_else(disks: Path) -> None:
    whole = disks / "w.qcow2"
    make_image(whole)
    head = whole.read_bytes()[:4096]
    for at in range(0, 112, 3):
        broken = bytearray(head)
        broken[at] ^= 0xFF
        (disks / "b.qcow2").write_bytes(broken[: 40 + at * 30])
        with contextlib.suppress(PolicyRefused):
            judge(disks / "b.qcow2", disks, image=True)
