"""The reference guest's kernel and initial RAM disk, made on this machine from Debian's packages and our own sources.

1. Debian's cloud kernel is downloaded with apt and unpacked; nothing is installed.
2. The drivers of virtio, of pvpanic and of the power button are taken from it, in the order in which they load.
3. Our workload (``guest/*.c``) is compiled statically.
4. Both go with busybox and ``guest/init`` into a cpio archive, which is the whole of the guest's disk.

The result is kept. It is made again only when our sources change or the cache is removed, so a guest boots the same
kernel today and tomorrow, and asking for it twice costs a few file look-ups.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import lzma
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from livemove.base.errors import MissingPrerequisite

WANTED_DRIVERS = ("virtio_pci", "virtio_net", "virtio_blk", "pvpanic_mmio", "pvpanic_pci", "button", "evdev")
# raised when this module makes another archive from the same sources
BUILDER_VERSION = 1
_KERNEL = "linux-image-cloud-amd64"
# vectors are slow under TCG: every one of them is a call into QEMU
_COMPILER = ("gcc", "-O2", "-fno-tree-vectorize", "-static", "-Wall", "-Wextra", "-pthread")


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What QEMU's ``-kernel`` and ``-initrd`` take, and the kernel's version; the files are readable by every user."""

    kernel: Path
    initrd: Path
    version: str


def ensure_image(cache_dir: Path | None = None) -> GuestImage:
    """The guest's image, built now if there is none for our sources.

    Safe to call from several processes at once: one builds, the others wait for it. Takes seconds the first time (a
    download of about 30 MB) and milliseconds later. Raises MissingPrerequisite when a program is missing, when apt
    cannot deliver the kernel, or when the cache cannot be written.
    """
    cache = cache_dir if cache_dir is not None else default_cache_dir()
    key = _digest_of_sources()
    found = _look_up(cache, key)
    if found is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / "guest.lock"):
            return _look_up(cache, key) or _build(cache, key)
    except PermissionError as error:
        raise MissingPrerequisite(
            f"The cache directory {cache} cannot be written.", remedy="Set XDG_CACHE_HOME to a directory of your own."
        ) from error


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/livemove``, else /var/cache/livemove for root, else ~/.cache/livemove."""
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured) / "livemove"
    return Path("/var/cache/livemove") if os.geteuid() == 0 else Path.home() / ".cache" / "livemove"


def _sources() -> dict[str, bytes]:
    folder = resources.files("livemove.lab").joinpath("guest")
    return {
        entry.name: entry.read_bytes()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name == "init" or entry.name.endswith(".c")
    }


def _digest_of_sources() -> str:
    digest = hashlib.sha256(repr((BUILDER_VERSION, WANTED_DRIVERS, _COMPILER)).encode())
    for name, content in _sources().items():
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def _look_up(cache: Path, key: str) -> GuestImage | None:
    try:
        note = json.loads((cache / f"guest-{key}.json").read_text())
        folder = cache / str(note["folder"])
        image = GuestImage(folder / "vmlinuz", folder / "initrd", str(note["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return image if image.kernel.is_file() and image.initrd.is_file() else None


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _build(cache: Path, key: str) -> GuestImage:
    if platform.machine() != "x86_64":
        raise MissingPrerequisite(
            f"The reference guest is made for x86_64, and this machine is {platform.machine()}.",
            remedy="Run the lab on an x86_64 machine.",
        )
    for program in ("gcc", "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise MissingPrerequisite(
                f"The program {program} is missing; the reference guest cannot be made without it.",
                remedy="Run 'make setup' on Debian 12 or 13.",
            )
    with tempfile.TemporaryDirectory(prefix=f"guest-{key}.", dir=cache) as scratch_name:
        scratch = Path(scratch_name)
        package = _unpacked(_kernel_package, scratch / "kernel")
        kernel = next(package.glob("boot/vmlinuz-*"))
        version = kernel.name.removeprefix("vmlinuz-")
        made = scratch / "made"
        made.mkdir()
        shutil.copyfile(kernel, made / "vmlinuz")
        (made / "initrd").write_bytes(gzip.compress(_archive(_contents(package, scratch)), compresslevel=1, mtime=0))
        for path, mode in ((made, 0o755), (made / "vmlinuz", 0o644), (made / "initrd", 0o644)):
            path.chmod(mode)
        folder = cache / f"guest-{version}-{key}"
        if folder.exists():
            # an older build that lost its note or one of its files
            folder.rename(scratch / "incomplete")
        made.rename(folder)
        note = scratch / "note"
        note.write_text(json.dumps({"folder": folder.name, "version": version}))
        note.rename(cache / f"guest-{key}.json")
    return GuestImage(folder / "vmlinuz", folder / "initrd", version)


def _contents(package: Path, scratch: Path) -> dict[str, bytes]:
    """Every file of the guest's root by its path."""
    drivers = load_order(WANTED_DRIVERS, package)
    files = {f"modules/{name}.ko": content for name, content in drivers}
    files["modules/order"] = "".join(f"{name}.ko\n" for name, _ in drivers).encode()
    files["bin/busybox"] = _busybox(scratch)
    sources = scratch / "sources"
    sources.mkdir()
    for name, content in _sources().items():
        (sources / name).write_bytes(content)
    _run([*_COMPILER, "-o", str(scratch / "workload"), str(sources / "workload.c")], "The guest's workload")
    files["workload"] = (scratch / "workload").read_bytes()
    files["init"] = (sources / "init").read_bytes()
    return files


# Packages -------------------------------------------------------------------------------------------------------------


def _kernel_package() -> str:
    """The versioned package that Debian's cloud kernel consists of today."""
    listing = _run(["apt-cache", "depends", _KERNEL], f"The package {_KERNEL}")
    match = re.search(r"Depends: (linux-image-\d\S*-cloud-amd64)\s", listing + "\n")
    if match is None:
        raise MissingPrerequisite(
            f"apt knows no package {_KERNEL}.", remedy="Name a Debian mirror in apt's sources and run 'apt-get update'."
        )
    return match[1]


def _unpacked(package_name: Callable[[], str], into: Path) -> Path:
    """Download a package and unpack it below `into`; apt's lists are fetched anew when the first try fails."""
    into.mkdir()
    try:
        _download(package_name(), into)
    except MissingPrerequisite:
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "-qq", "update"], "apt's lists of packages")
        _download(package_name(), into)
    root = into / "root"
    _run(["dpkg-deb", "-x", str(next(into.glob("*.deb"))), str(root)], "The downloaded package")
    return root


def _download(package: str, into: Path) -> None:
    # apt's own unprivileged user may not write below a private directory
    _run(
        ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", package],
        f"The package {package}",
        folder=into,
    )


def _busybox(scratch: Path) -> bytes:
    """This machine's busybox if it is a static one, else Debian's."""
    installed = shutil.which("busybox")
    if installed is not None and is_static(content := Path(installed).read_bytes()):
        return content
    root = _unpacked(lambda: "busybox-static", scratch / "busybox")
    return next(path for path in root.rglob("busybox") if path.parent.name == "bin").read_bytes()


def _run(command: list[str], what: str, folder: Path | None = None) -> str:
    """Standard output of `command`. Raises MissingPrerequisite with the end of its complaint when it fails."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        complaint = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise MissingPrerequisite(
            f"{what} could not be had: '{' '.join(command[:2])}' says: {complaint[0][:300]}",
            remedy="Run 'make setup', check that apt reaches its mirror, and try again.",
        )
    return done.stdout


# Formats --------------------------------------------------------------------------------------------------------------


def is_static(program: bytes) -> bool:
    """Whether a 64-bit little-endian ELF file names no interpreter, that is, runs without shared libraries."""
    if program[:6] != b"\x7fELF\x02\x01" or len(program) < 64:
        return False
    table = int.from_bytes(program[32:40], "little")
    entry_bytes, entries = (int.from_bytes(program[at : at + 2], "little") for at in (54, 56))
    kinds = (int.from_bytes(program[table + n * entry_bytes :][:4], "little") for n in range(entries))
    return 3 not in kinds


def load_order(wanted: Iterable[str], root: Path) -> list[tuple[str, bytes]]:
    """Name and content of the wanted kernel modules below `root` and of all that they need, needed ones first.

    A module that is not there is taken to be built into the kernel. The kernel package has no ``modules.dep`` (depmod
    makes it at installation), so the modules' own notes are read.
    """
    paths = {path.name.partition(".ko")[0].replace("-", "_"): path for path in root.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in order or name not in paths:
            return
        content = paths[name].read_bytes()
        # Debian 13 compresses them, and busybox's insmod cannot undo that
        content = lzma.decompress(content) if paths[name].suffix == ".xz" else content
        note = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in note[1].decode().split(",") if note else ():
            visit(needed.replace("-", "_"))
        order[name] = content

    for name in wanted:
        visit(name.replace("-", "_"))
    return list(order.items())


def _archive(files: dict[str, bytes]) -> bytes:
    """A cpio archive of the `newc` format, as the kernel reads it: executable files owned by root, and mount points."""
    folders = {"dev", "proc", "sys"} | {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries = [(name, 0o040755, b"") for name in sorted(folders)]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    return b"".join(_archive_entry(number, *entry) for number, entry in enumerate(entries, 1))


def _archive_entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    # inode, mode, owner, group, links, time, size, device (2), device of a node (2), length of the name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)
