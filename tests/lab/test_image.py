import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from livemove.base.errors import MissingPrerequisite
from livemove.lab import image
from livemove.lab.image import GuestImage, default_cache_dir, ensure_image, is_static, load_order


def elf(*segment_kinds: int) -> bytes:
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    header[32:40] = (64).to_bytes(8, "little")
    header[54:56] = (56).to_bytes(2, "little")
    header[56:58] = len(segment_kinds).to_bytes(2, "little")
    return bytes(header) + b"".join(kind.to_bytes(4, "little").ljust(56, b"\0") for kind in segment_kinds)


@pytest.mark.parametrize(
    ("program", "static"),
    [
        (elf(1, 1, 2), True),
        (elf(6, 3, 1), False),
        (elf(1, 1, 3), False),
        (b"#!/bin/sh\n", False),
        (b"\x7fELF\x02\x01", False),
        (b"", False),
    ],
)
def test_static_programs_are_those_without_an_interpreter(program: bytes, static: bool) -> None:
    assert is_static(program) is static


def write_module(folder: Path, file_name: str, needs: str) -> bytes:
    content = b"\x7fELF...\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file_name).write_bytes(lzma.compress(content) if file_name.endswith(".xz") else content)
    return content


def test_needed_modules_come_first_once_and_uncompressed(tmp_path: Path) -> None:
    write_module(tmp_path / "lib/a", "net.ko", "ring,bus-core")
    write_module(tmp_path / "lib/a", "block.ko", "ring")
    ring = write_module(tmp_path / "usr/lib/b", "ring.ko.xz", "")
    write_module(tmp_path / "lib/b", "bus-core.ko", "ring,builtin_one")
    write_module(tmp_path / "lib/b", "unwanted.ko", "net")
    order = load_order(["net", "not_there", "block"], tmp_path)
    assert [name for name, _ in order] == ["ring", "bus_core", "net", "block"]
    assert order[0][1] == ring


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    archive = image._archive({"init": b"#!/bin/sh\n", "bin/tool": b"12345", "a/b/c": b""})
    (tmp_path / "archive").write_bytes(archive)
    assert len(archive) % 4 == 0
    with (tmp_path / "archive").open("rb") as source:
        subprocess.run(["busybox", "cpio", "-i", "-d"], stdin=source, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bin/tool").read_bytes() == b"12345"
    assert os.access(tmp_path / "init", os.X_OK)
    assert (tmp_path / "a/b/c").read_bytes() == b""
    assert (tmp_path / "proc").is_dir()


def put_image(cache: Path) -> GuestImage:
    folder = cache / "guest-6.1-x"
    folder.mkdir()
    (folder / "vmlinuz").write_bytes(b"k")
    (folder / "initrd").write_bytes(b"i")
    note = {"folder": folder.name, "version": "6.1"}
    (cache / f"guest-{image._digest_of_sources()}.json").write_text(json.dumps(note))
    return GuestImage(folder / "vmlinuz", folder / "initrd", "6.1")


def test_an_image_that_is_there_needs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    made = put_image(tmp_path)
    assert ensure_image(tmp_path) == made


@pytest.mark.parametrize("fault", ["no initrd", "note is rubbish", "sources changed"])
def test_an_unusable_image_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    made = put_image(tmp_path)
    if fault == "no initrd":
        made.initrd.unlink()
    elif fault == "note is rubbish":
        next(tmp_path.glob("*.json")).write_text("[1]")
    else:
        monkeypatch.setattr(image, "BUILDER_VERSION", image.BUILDER_VERSION + 1)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPrerequisite, match="gcc is missing"):
        ensure_image(tmp_path)


def test_a_failing_program_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="The thing could not be had: 'sh -c' says: no such thing"):
        image._run(["sh", "-c", "echo first >&2; echo no such thing >&2; exit 3"], "The thing")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/livemove")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_cache_dir() == Path("/var/cache/livemove")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache_dir() == Path("/home/someone/.cache/livemove")


@pytest.mark.qemu
def test_two_processes_build_one_image(tmp_path: Path) -> None:
    script = f"from pathlib import Path; from livemove.lab.image import ensure_image; print(ensure_image(Path({str(tmp_path)!r})).initrd)"
    both = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=180)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1]
    content = gzip.decompress(Path(answers[0]).read_bytes())
    assert all(name in content for name in (b"virtio_net.ko", b"virtio_blk.ko", b"bin/busybox", b"workload", b"init"))
    left = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert left == ["guest", "guest", "guest.lock"], "scratch directories must not stay"
