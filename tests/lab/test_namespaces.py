from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from livemove.base.errors import MissingPrerequisite
from livemove.lab import namespaces
from livemove.lab.lab import Lab
from livemove.lab.namespaces import Tools
from livemove.lab.topology import LabSpec


async def test_a_program_that_fails_is_told_with_its_words_and_the_line_that_failed() -> None:
    with pytest.raises(MissingPrerequisite, match=r"status 3: too bad\.$"):
        await Tools("x").run(["sh", "-c", "echo too bad >&2; exit 3"])
    with pytest.raises(MissingPrerequisite, match=r"\(the second line\)"):
        await Tools("x").run(
            ["sh", "-c", "cat >/dev/null; echo Command failed -:2 >&2; exit 1"],
            input_text="the first line\nthe second line\n",
        )
    with pytest.raises(MissingPrerequisite, match="no-such-program"):
        await Tools("x").run(["no-such-program"])
    assert await Tools("x").run(["cat"], input_text="as it came\n") == "as it came\n"


async def test_a_program_under_way_is_not_cut_off_by_cancellation(tmp_path: Path) -> None:
    done = tmp_path / "done"
    task = asyncio.ensure_future(Tools("x").run(["sh", "-c", f"sleep 0.3; cat > {done}"], input_text="whole"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.read_text() == "whole"


async def test_doing_things_together_waits_for_all_and_raises_the_first_error_as_itself() -> None:
    ended: list[int] = []

    async def work(number: int, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        ended.append(number)
        if number != 3:
            raise MissingPrerequisite(f"number {number}")

    with pytest.raises(MissingPrerequisite, match="number 1"):
        await namespaces.together(work(1, 0.02), work(2, 0.0), work(3, 0.05))
    assert ended == [2, 1, 3]


def test_without_root_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MissingPrerequisite, match="1000"):
        namespaces.require_root()


@pytest.mark.qemu
async def test_a_socket_made_in_a_namespace_stays_there_and_this_process_does_not_move(lab_name: str) -> None:
    here = namespaces.namespace_id(Path("/proc/thread-self/ns/net"))
    async with Lab(LabSpec(lab_name)) as lab:
        with (
            namespaces.socket_in(lab.spec.namespace("A"), kind=socket.SOCK_DGRAM) as a,
            namespaces.socket_in(lab.spec.namespace("B"), kind=socket.SOCK_DGRAM) as b,
        ):
            a.bind(("10.80.0.1", 0))
            b.bind(("10.80.0.2", 0))
            b.settimeout(2)
            a.sendto(b"hello", b.getsockname())
            assert await asyncio.to_thread(b.recvfrom, 100) == (b"hello", a.getsockname())
        with pytest.raises(FileNotFoundError):
            namespaces.socket_in("lm-none-A")
    assert namespaces.namespace_id(Path("/proc/thread-self/ns/net")) == here


@pytest.mark.qemu
async def test_a_file_left_by_a_killed_ip_is_removed_like_a_namespace(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)):
        stump = namespaces.NETNS_DIRECTORY / f"lm-{lab_name}-Z"
        stump.touch()
    assert not stump.exists()
