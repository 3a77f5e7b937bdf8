import asyncio
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from livemove.base.errors import BadSetting, LinkError
from livemove.lab.image import ensure_image
from livemove.lab.reference import (
    Answer,
    Bad,
    ConsoleLine,
    ConsoleSummary,
    Ready,
    Tick,
    Workload,
    ask_guest,
    parse_fields,
    parse_line,
    read_console,
    summarize,
)

READY = "LM ready pages=16384 seed=1 mib=64"
TICK = "LM tick t_ms=250 rewritten=7 checked=503 bad=0 gap_ms=5"
BAD = "LM bad page=7 kind=text expected_generation=3 first_difference=2048 holds=older"


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (READY, Ready(16384, 1, 64)),
        (TICK, Tick(250, 7, 503, 0, 5)),
        (TICK + "\r", Tick(250, 7, 503, 0, 5)),
        ("[    2.1] clocksource: tsc unstable" + TICK, Tick(250, 7, 503, 0, 5)),
        (BAD, Bad(7, "text", 3, 2048, "older")),
        ("LM answer error unknown command", Answer("error unknown command")),
        ("LM tick t_ms=250 rewritten=7 checked=503 bad=0", None),
        ("LM tick t_ms=250 rewritten=7 checked=x bad=0 gap_ms=5", None),
        ("LM ready pages=16", None),
        ("LM ticktock t_ms=1", None),
        ("[    0.5] Run /init as init process", None),
        ("\x00\ufffd\x1b[2J", None),
        ("", None),
    ],
)
def test_lines_of_the_console(line: str, meaning: ConsoleLine | None) -> None:
    assert parse_line(line) == meaning


def tick(t_ms: int, rewritten: int, bad: int = 0, gap_ms: int = 5) -> str:
    return f"LM tick t_ms={t_ms} rewritten={rewritten} checked=9 bad={bad} gap_ms={gap_ms}"


@pytest.mark.parametrize(
    ("lines", "ticks", "bad", "longest_gap_ms", "rewriting"),
    [
        ([], 0, 0, 0, False),
        ([READY], 0, 0, 0, False),
        ([READY, tick(1, 5)], 1, 0, 5, False),
        ([READY, tick(1, 5, gap_ms=40), "noise", tick(2, 6)], 2, 0, 40, True),
        ([READY, tick(1, 5), tick(2, 6), tick(3, 6)], 3, 0, 5, False),
        ([READY, BAD, BAD, tick(1, 5, bad=1)], 1, 2, 5, False),
        ([READY, BAD, tick(1, 5, bad=30)], 1, 30, 5, False),
        ([READY, BAD, tick(1, 5, bad=1, gap_ms=90), READY, tick(1, 0)], 1, 0, 5, False),
    ],
)
def test_the_sum_of_a_console(lines: list[str], ticks: int, bad: int, longest_gap_ms: int, rewriting: bool) -> None:
    told = summarize(lines)
    assert (told.ticks, told.bad, told.longest_gap_ms, told.rewriting) == (ticks, bad, longest_gap_ms, rewriting)


def test_a_console_may_end_anywhere_and_go_on_elsewhere(tmp_path: Path) -> None:
    whole = f"\x00\xff boot\r\n{READY}\r\n{tick(1, 5)}\r\n{tick(2, 9)}\r\n".encode("latin-1")
    source, destination = tmp_path / "source.log", tmp_path / "destination.log"
    for cut in range(len(whole) + 1):
        source.write_bytes(whole[:cut])
        destination.write_bytes(whole[cut:])
        assert read_console(source).ticks == max(0, whole[:cut].count(b"\n") - 2)
        assert read_console(source, destination) == read_console(source, destination, tmp_path / "missing")
        assert read_console(source, destination).ticks == 2
    assert read_console(tmp_path / "missing") == ConsoleSummary()


def test_the_kernel_arguments_say_everything() -> None:
    workload = Workload(
        zero_mib=1, random_mib=2, text_mib=3, equal_mib=4, working_set_mib=5, rate_pages_per_s=-1, seed=6
    )
    words = workload.kernel_arguments().split()
    assert words[0] == "console=ttyS0"
    own = "lm.zero=1 lm.random=2 lm.text=3 lm.equal=4 lm.ws=5 lm.rate=-1 lm.seed=6 lm.check=2000"
    assert " ".join(word for word in words if word.startswith("lm.")) == own
    networked = replace(workload, address="10.0.0.2/24", second_address="10.1.0.2/24", gateway="10.0.0.1")
    assert networked.kernel_arguments().endswith(" lm.ip=10.0.0.2/24 lm.ip1=10.1.0.2/24 lm.gw=10.0.0.1")
    assert workload.content_mib == 10


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_mib": -1},
        {"rate_pages_per_s": -2},
        {"seed": -1},
        {"random_mib": 0, "text_mib": 0, "working_set_mib": 0},
        {"working_set_mib": 65},
        {"address": "10.0.0.256/24"},
        {"address": "10.0.0.2/24 init=/bin/sh"},
        {"gateway": "10.0.0.1/24"},
    ],
)
def test_impossible_workloads_are_refused(fields: dict[str, int | str]) -> None:
    with pytest.raises(BadSetting):
        Workload(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (b"ok\n", "ok"),
        (b"checked=5 bad=0\r\nmore", "checked=5 bad=0"),
        (b"half", None),
        (b"x" * 5000, None),
        (b"", None),
    ],
)
async def test_asking_a_guest(answers: bytes, expected: str | None) -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(answers)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        if expected is not None:
            assert await ask_guest("127.0.0.1", "check", port=port) == expected
        else:
            with pytest.raises(LinkError, match="did not answer 'check'"):
                await ask_guest("127.0.0.1", "check", port=port)
    assert asked == [b"check\n"]


async def test_a_silent_guest_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(LinkError, match=r"no answer in 0\.1 s"):
        await ask_guest("127.0.0.1", "stat", port=listener.getsockname()[1], timeout_s=0.1)


# The real guest -------------------------------------------------------------------------------------------------------


class Guest:
    """A running reference guest with its console in a file and a network of QEMU's own."""

    def __init__(self, folder: Path) -> None:
        self.console = folder / "console.log"
        self.console_socket = folder / "console"
        self.qmp_socket = folder / "qmp"
        self.ports = {7: free_port(), 8: free_port()}
        image = ensure_image()
        workload = Workload(rate_pages_per_s=2000, address="10.0.2.15/24")
        forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in self.ports.items())
        options = {
            "-machine": "pc-q35-8.2",
            "-accel": "tcg",
            "-cpu": "qemu64",
            "-display": "none",
            "-m": str(workload.memory_mib),
            "-kernel": str(image.kernel),
            "-initrd": str(image.initrd),
            "-append": workload.kernel_arguments(),
            "-chardev": f"socket,id=tty,path={self.console_socket},server=on,wait=off,logfile={self.console}",
            "-serial": "chardev:tty",
            "-qmp": f"unix:{self.qmp_socket},server=on,wait=off",
            "-nic": f"user,model=virtio-net-pci,restrict=on,{forwards}",
        }
        words = [word for option in options.items() for word in option]
        self.process = subprocess.Popen(["qemu-system-x86_64", "-nodefaults", *words])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def summary(self) -> ConsoleSummary:
        return read_console(self.console)

    def wait_for(self, what: str, seconds: float = 60.0) -> ConsoleSummary:
        for _ in range(int(seconds / 0.05)):
            if self.console.exists() and what in self.console.read_text(errors="replace"):
                return self.summary()
            assert self.process.poll() is None, f"QEMU ended with {self.process.returncode}"
            time.sleep(0.05)
        raise AssertionError(f"no '{what}' in {self.console.read_text(errors='replace')[-2000:]}")

    def wait_for_ticks(self, more: int) -> ConsoleSummary:
        wanted = self.summary().ticks + more
        for _ in range(1200):
            if self.summary().ticks >= wanted:
                break
            time.sleep(0.05)
        assert self.summary().ticks >= wanted
        return self.summary()

    def say(self, line: str) -> str:
        """Give a command on the serial console; its answer."""
        before = len(self.summary().answers)
        with socket.socket(socket.AF_UNIX) as terminal:
            terminal.connect(str(self.console_socket))
            terminal.sendall(line.encode() + b"\n")
            for _ in range(1200):
                if len(answers := self.summary().answers) > before:
                    return answers[-1]
                time.sleep(0.05)
        raise AssertionError(f"no answer to {line}")

    def qmp(self, *commands: str, until: str) -> list[dict[str, object]]:
        """Every message of QEMU's up to the event `until`, or up to the last command's answer when that is empty."""
        seen: list[dict[str, object]] = []
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(60)
            monitor.connect(str(self.qmp_socket))
            with monitor.makefile("rw") as stream:
                stream.readline()
                for command in ("qmp_capabilities", *commands):
                    stream.write(json.dumps({"execute": command}))
                    stream.flush()
                    while "return" not in (message := json.loads(stream.readline())):
                        seen.append(message)
                while until and not any(message.get("event") == until for message in seen):
                    seen.append(json.loads(stream.readline()))
        return seen


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def guest() -> Iterator[Guest]:
    # not tmp_path: the names of UNIX sockets are limited to 107 characters
    with tempfile.TemporaryDirectory(prefix="livemove-") as folder:
        running = Guest(Path(folder))
        try:
            running.wait_for("LM ready")
            yield running
        finally:
            running.end()


@pytest.mark.qemu
async def test_the_guest_works_checks_itself_and_answers(guest: Guest) -> None:
    told = guest.wait_for_ticks(4)
    assert told.ready == Ready(pages=16384, seed=1, mib=64)
    assert told.bad == 0
    assert told.rewriting
    assert told.last_tick is not None
    assert told.last_tick.checked > 0

    fields = parse_fields(guest.say("check"))
    assert (fields["checked"], fields["bad"]) == ("16384", "0")
    assert int(fields["generation_sum"]) > 0

    reader, writer = await asyncio.open_connection("127.0.0.1", guest.ports[7])
    for text in (b"a", b"hello" * 100):
        writer.write(text)
        assert await asyncio.wait_for(reader.readexactly(len(text)), 10) == text
    writer.close()
    assert await ask_guest("127.0.0.1", "rate 0", port=guest.ports[8]) == "ok"
    guest.wait_for_ticks(2)
    assert not guest.wait_for_ticks(2).rewriting
    assert (await ask_guest("127.0.0.1", "dance", port=guest.ports[8])).startswith("error")
    assert parse_fields(await ask_guest("127.0.0.1", "check", port=guest.ports[8]))["bad"] == "0"


@pytest.mark.qemu
@pytest.mark.parametrize(("page", "kind"), [(8191, "random"), (16383, "text")])
def test_one_changed_byte_is_found(guest: Guest, page: int, kind: str) -> None:
    assert guest.say(f"damage {page}") == "ok"
    assert parse_fields(guest.say("check"))["bad"] == "1"
    told = guest.wait_for_ticks(1)
    assert [(bad.page, bad.kind, bad.first_difference, bad.holds) for bad in told.bad_pages] == [
        (page, kind, 2048, "damaged")
    ]
    assert told.bad == 1


@pytest.mark.qemu
def test_a_pause_is_not_felt_inside(guest: Guest) -> None:
    guest.wait_for_ticks(1)
    guest.qmp("stop", until="STOP")
    time.sleep(2)
    guest.qmp("cont", until="RESUME")
    told = guest.wait_for_ticks(3)
    assert told.longest_gap_ms < 1500
    assert told.bad == 0


@pytest.mark.qemu
def test_the_guest_powers_itself_off(guest: Guest) -> None:
    guest.wait_for_ticks(1)
    with socket.socket(socket.AF_UNIX) as terminal:
        terminal.connect(str(guest.console_socket))
        terminal.sendall(b"poweroff\n")
        events = guest.qmp(until="SHUTDOWN")
    assert events[-1]["data"] == {"guest": True, "reason": "guest-shutdown"}
    assert guest.process.wait(timeout=30) == 0


@pytest.mark.qemu
def test_the_power_button_is_obeyed(guest: Guest) -> None:
    guest.wait_for_ticks(1)
    events = guest.qmp("system_powerdown", until="SHUTDOWN")
    assert events[-1]["data"] == {"guest": True, "reason": "guest-shutdown"}
    assert guest.process.wait(timeout=30) == 0
