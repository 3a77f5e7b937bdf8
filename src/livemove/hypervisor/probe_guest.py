"""Does an accelerator run an ordinary guest? Tried with a guest of one sector.

It boots from disk like any guest, sets up page tables, enters 64-bit mode, adds two numbers in an SSE register, compares
the sum in memory, and writes 0x15 to QEMU's debug exit device, upon which QEMU exits with status 43. A KVM on top of a
hypervisor without nested virtualization gets as far as 64-bit mode by emulation, then fails at the SSE instruction.
The same guest passes under TCG (0.2 s), which is the control that the tests run.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

# A guest that does not answer by then (TCG takes 0.2 s, and KVM is faster) will not.
_LIMIT_S = 3.0
_EXIT_STATUS = (0x15 << 1) | 1

# .code16 (loaded at 0x7c00)                    .code64
#   cli; xor ax,ax; mov ds,ax                   long_mode:
#   mov es,ax; mov ss,ax; mov sp,0x7c00           mov eax,16; mov ds,eax; mov ss,eax
#   cld; mov di,0x1000; mov cx,0x1800             mov rsp,0x7c00
#   rep stosw              clear page tables      mov rax,cr4; or ax,0x600     SSE on
#   mov word ptr [0x1000],0x2003                  mov cr4,rax
#   mov word ptr [0x2000],0x3003                  movabs rax,0x1234567890abcdef
#   mov word ptr [0x3000],0x0083   2 MiB page     movq xmm0,rax; paddq xmm0,xmm0
#   mov eax,cr4; or al,0x20; mov cr4,eax          movq rbx,xmm0; add rax,rax
#   mov eax,0x1000; mov cr3,eax                   mov ecx,0x1ff000; mov [rcx],rax
#   mov ecx,0xc0000080; rdmsr                     cmp rbx,[rcx]; jne hang
#   or ah,1; wrmsr         EFER.LME               mov dx,0xf4; mov al,0x15; out dx,al
#   mov eax,cr0; or eax,0x80000001                hang: hlt; jmp hang
#   mov cr0,eax            paging, protection   gdt: .quad 0, 0x00209a0000000000, 0x0000920000000000
#   lgdt [gdtr]; jmp 8:long_mode                gdtr: .word 23; .long gdt
_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cfcbf0010b90018f3abc70600100320c70600200330c706003083000f20e00c200f22e066"
    "b8001000000f22d866b9800000c00f3280cc010f300f20c0660d010000800f22c00f0116c07cea5b7c0800b810000000"
    "8ed88ed048c7c4007c00000f20e0660d00060f22e048b8efcdab907856341266480f6ec0660fd4c066480f7ec34801c0"
    "b900f01f00488901483b19750766baf400b015eef4ebfd90000000000000000000000000009a20000000000000920000"
    "1700a87c"
)


#: Before a command: the kernel kills it when the agent is killed, so that no QEMU that was only asked something is left.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


def boot_sector() -> bytes:
    """The guest, as the first sector of its disk."""
    return _CODE.ljust(510, b"\0") + b"\x55\xaa"


async def runs_a_guest(
    qemu: str, accelerator: str, *, limit_s: float = _LIMIT_S, work_dir: Path | None = None
) -> tuple[bool, str]:
    """Whether the guest runs to its end under `accelerator`, and the reason as part of a sentence."""
    with tempfile.TemporaryDirectory(prefix="guest-", dir=work_dir) as directory:
        disk, log = Path(directory, "disk"), Path(directory, "log")
        disk.write_bytes(boot_sector().ljust(1 << 20, b"\0"))
        with log.open("wb") as output:  # noqa: ASYNC230  (a temporary file)
            # fmt: off
            child = await asyncio.create_subprocess_exec(
                *DIES_WITH_US, qemu, "-no-user-config", "-nodefaults", "-display", "none", "-machine", "q35", "-m", "16",
                "-accel", accelerator, "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
                "-drive", f"file={disk},format=raw,if=none,id=disk,readonly=on", "-device", "virtio-blk-pci,drive=disk",
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
            )
            # fmt: on
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await _until_settled(child, log)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        words = log.read_text(errors="replace")
    if child.returncode == _EXIT_STATUS:
        return True, "a test guest ran"
    if "KVM internal error" in words:
        return False, "/dev/kvm is there but stopped a test guest with an internal error (no nested virtualization?)"
    if child.returncode == -9:
        return False, f"a test guest did not come to its end within {limit_s:g} s"
    last = words.strip().rpartition("\n")[2][-200:]
    return False, f"a test guest ended with status {child.returncode} ({last})"


async def _until_settled(child: asyncio.subprocess.Process, log: Path) -> None:
    """Return when QEMU has ended, or has said that KVM gave up (it then stays there, stopped)."""
    while child.returncode is None and b"KVM internal error" not in log.read_bytes():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await child.wait()
