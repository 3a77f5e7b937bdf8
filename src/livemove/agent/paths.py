"""Which files of the host a VM may use: judged by where a path really leads, images inside images included.

A path as written says nothing: a symbolic link inside an allowed directory may lead out of it, and a qcow2 image names a
backing file of its own, which QEMU opens as well. So every link is followed, and every header read, before QEMU is started.

What is not closed: somebody who may make links in an allowed directory, and changes one between this look and QEMU's own
opening. Such a directory is not one to allow; ``qemu_user`` bounds what QEMU could open then.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from livemove.base.errors import PolicyRefused
from livemove.hypervisor.definition import Definition

_MAX_CHAIN = 16
_MAX_NAME_BYTES = 1023
_QCOW2 = b"QFI\xfb"
_DATA_FILE_BIT = 1 << 2
_DATA_FILE_NAME = 0x44415441


def check_paths(paths: Iterable[str], images: Iterable[str], allowed: Iterable[str], host: str) -> None:
    """Raises PolicyRefused naming the path, and where it leads, when that is outside the directories `allowed`.

    Blocks for as long as the storage does, so it has no place in the agent's loop (see agent.file_checks).

    :param images: those of `paths` that are qcow2: what their headers name is judged too.
    """
    places = [Path(os.path.realpath(directory)) for directory in allowed]
    if Path("/") in places:
        return
    for path in paths:
        _check(path, places, host, path)
    for image in images:
        for number, name in enumerate(_named_by(image)):
            if number >= _MAX_CHAIN:
                raise PolicyRefused(f"{image} has more than {_MAX_CHAIN} images behind it.", where=host)
            _check(name, places, host, image)


def files_of(definition: Definition) -> tuple[list[str], list[str]]:
    """All paths of a definition that is to be stored or started, and those of them that are qcow2 images."""
    boot, uefi = definition.boot, definition.uefi
    paths = [
        boot.kernel,
        boot.initrd,
        *((uefi.code, uefi.vars) if uefi else ()),
        *(disk.path for disk in definition.disk),
    ]
    return [path for path in paths if path], [disk.path for disk in definition.disk if disk.format == "qcow2"]


def _check(path: str, places: list[Path], host: str, named_as: str) -> None:
    real = Path(os.path.realpath(path))
    if not Path(path).is_absolute() or not any(real.is_relative_to(place) for place in places):
        leads = "" if str(real) == named_as else f", which leads to {str(real)[:200]},"
        raise PolicyRefused(
            f"{named_as}{leads} is outside the directories that {host} allows ('allowed_disk_dirs').", where=host
        )


def _named_by(image: str) -> Iterator[str]:
    """Every file that QEMU opens because of this qcow2 image, as absolute paths; what is no file path comes as it is."""
    waiting, seen = [image], {os.path.realpath(image)}
    while waiting:
        at = waiting.pop()
        for name in _header_names(at):
            path = name.removeprefix("file:")
            if ":" not in path.partition("/")[0] and not Path(path).is_absolute():
                path = str(Path(os.path.realpath(at)).parent / path)
            yield path
            if os.path.realpath(path) not in seen:
                seen.add(os.path.realpath(path))
                waiting.append(path)


def _header_names(path: str) -> list[str]:
    """Backing file and external data file that a qcow2 header names; none for another kind of file, or none at all."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(4096)
            if len(head) < 72 or head[:4] != _QCOW2:
                return []
            version, offset, length = struct.unpack_from(">IQI", head, 4)
            names = []
            if offset and length:
                file.seek(offset)
                names.append(file.read(min(length, _MAX_NAME_BYTES)))
    except OSError:
        return []  # that it cannot be opened is told by another check
    if version >= 3 and len(head) >= 104 and struct.unpack_from(">Q", head, 72)[0] & _DATA_FILE_BIT:
        names += _data_file(head, struct.unpack_from(">I", head, 100)[0])
    return [name.decode(errors="surrogateescape") for name in names]


def _data_file(head: bytes, at: int) -> list[bytes]:
    while at + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, at)
        if kind == 0:
            break
        if kind == _DATA_FILE_NAME:
            return [head[at + 8 : at + 8 + length]]
        at += 8 + (length + 7) // 8 * 8
    return [b"(a data file that its header does not name)"]
