"""The guest of one sector: passes under TCG (the control), and the verdict on KVM agrees with what KVM does here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from livemove.hypervisor.probe_guest import boot_sector, runs_a_guest

QEMU = "qemu-system-x86_64"


def test_it_is_a_boot_sector() -> None:
    assert len(boot_sector()) == 512 and boot_sector()[-2:] == b"\x55\xaa"


@pytest.mark.qemu
async def test_the_control_runs_under_tcg() -> None:
    # generous, because other tests may be using the processors
    assert await runs_a_guest(QEMU, "tcg", limit_s=20) == (True, "a test guest ran")


@pytest.mark.qemu
async def test_a_guest_that_never_ends_is_given_up() -> None:
    runs, why = await runs_a_guest(QEMU, "tcg", limit_s=0.001)
    assert not runs and "within 0.001 s" in why


@pytest.mark.qemu
async def test_an_accelerator_that_is_none() -> None:
    runs, why = await runs_a_guest(QEMU, "no-such", limit_s=20)
    assert not runs and "no-such" in why


@pytest.mark.qemu
@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="there is no /dev/kvm here")
async def test_the_verdict_on_kvm_has_a_reason() -> None:
    runs, why = await runs_a_guest(QEMU, "kvm")
    assert (why == "a test guest ran") is runs
    assert runs or "test guest" in why


async def test_what_qemu_says_is_the_reason(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho 'KVM internal error. Suberror: 1' >&2\nexec sleep 100\n")
    program.chmod(0o755)
    runs, why = await runs_a_guest(str(program), "kvm")
    assert not runs and "internal error" in why
    program.write_text("#!/bin/sh\necho one >&2; echo 'could not access KVM' >&2\nexit 1\n")
    assert await runs_a_guest(str(program), "kvm") == (False, "a test guest ended with status 1 (could not access KVM)")


@pytest.mark.skipif(shutil.which("objdump") is None, reason="binutils are not installed")
def test_the_listing_in_the_comment_is_the_code(tmp_path: Path) -> None:
    image = tmp_path / "sector"
    image.write_bytes(boot_sector())
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--start-address=0x5b", str(image)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for instruction in ("movabs rax,0x1234567890abcdef", "paddq  xmm0,xmm0", "out    dx,al", "hlt"):
        assert instruction in listing
