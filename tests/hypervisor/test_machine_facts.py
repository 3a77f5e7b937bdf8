"""What this host has left, read from given texts and from this machine."""

from __future__ import annotations

from pathlib import Path

from livemove.hypervisor.machine_facts import cpu_count, free_hugepages, memory_available_bytes, memory_total_bytes


def test_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       4096 kB\nMemFree:  1 kB\nMemAvailable:    1024 kB\n")
    assert (memory_available_bytes(meminfo), memory_total_bytes(meminfo)) == (1 << 20, 4 << 20)
    meminfo.write_text("MemTotal:       4096 kB\n")
    assert memory_available_bytes(meminfo) == 0
    assert 0 < memory_available_bytes() < memory_total_bytes()


def test_huge_pages(tmp_path: Path) -> None:
    directory = tmp_path / "hugepages-2048kB"
    directory.mkdir()
    (directory / "free_hugepages").write_text("10\n")
    (directory / "resv_hugepages").write_text("4\n")
    assert free_hugepages(2 << 20, root=tmp_path) == 6
    assert free_hugepages(1 << 30, root=tmp_path) == 0
    (directory / "resv_hugepages").write_text("40\n")
    assert free_hugepages(2 << 20, root=tmp_path) == 0


def test_processors() -> None:
    assert cpu_count() >= 1
