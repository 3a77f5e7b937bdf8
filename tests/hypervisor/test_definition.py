"""Definitions: what is accepted, the sentence for what is not, and that the documentation is fresh."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from livemove.base.errors import BadDefinition, LivemoveError, NotMigratable
from livemove.base.units import GIB, MIB
from livemove.hypervisor.definition import _EXAMPLE, MAX_TEXT_CHARS, definition_markdown, parse_definition


def test_a_name_is_enough() -> None:
    definition = parse_definition('name = "web1"')
    assert (definition.cpu.count, definition.cpu.model, definition.machine) == (1, "baseline", "q35")
    assert (definition.memory.size_bytes, definition.memory.backing) == (GIB, "memfd")
    assert (definition.disk, definition.nic, definition.console, definition.migratable) == ((), (), True, True)


def test_everything_at_once() -> None:
    definition = parse_definition(
        """
        name = "db"
        machine = "pc-q35-8.2"
        firmware = "uefi"
        extra_arguments = ["-device", "virtio-rng-pci"]
        [cpu]
        count = 4
        model = "Nehalem,+aes,vme=off"
        [memory]
        size = "2GiB"
        backing = "hugetlb"
        populate = true
        [uefi]
        code = "/usr/share/OVMF/OVMF_CODE.fd"
        vars = "/srv/db.fd"
        shared = true
        [[disk]]
        path = "/dev/vg/db"
        kind = "block"
        serial = "DB-1"
        [[disk]]
        path = "/srv/a.iso"
        readonly = true
        [[nic]]
        bridge = "br0"
        [[nic]]
        tap = "mytap"
        mac = "52:54:00:AB:00:01"
        model = "e1000e"
        """
    )
    assert definition.memory.hugepage_bytes == 2 * MIB
    assert [disk.kind for disk in definition.disk] == ["block", "file"]
    assert definition.nic[1].mac == "52:54:00:AB:00:01"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('nam = "x"', ["unknown key 'nam'", "nearest known key to 'nam' is 'name'"]),
        ('name = "x"\n[cpu]\ncuont = 2', ["unknown key 'cpu.cuont'", "'cuont' is 'count'"]),
        (
            'name = "x"\n[[disk]]\npath = "/a"\n[[disk]]\npath = "/b"\nreadOnly = true',
            ["disk.1.readOnly", "'readonly'"],
        ),
        ('name = "x"\ncount = 2', ["unknown key 'count'", "'cpu.count'"]),
        ('name = "x"\n[zzz]\nq = 1', ["unknown key 'zzz'", "Known keys there are boot,"]),
        ('name = "x"\n[cpu]\ncount = 0', ["'cpu.count' is '0'", "greater than or equal to 1"]),
        ('name = "x"\n[cpu]\ncount = "2"', ["'cpu.count'", "valid integer"]),
        ('name = "x"\n[cpu]\nmodel = "a b"', ["CPU model of QEMU"]),
        ('name = "x"\n[memory]\nsize = "1024"', ["'1024'"]),
        ('name = "x"\n[memory]\nsize = "1GB"', ["multiple of 1MiB", "not 1GB"]),
        ('name = "x"\n[memory]\nsize = "1MiB"', ["at least 8MiB"]),
        ('name = "x"\n[memory]\nsize = "1025MiB"\nbacking = "hugetlb"', ["multiple of 2MiB"]),
        ('name = "x"\n[memory]\nhugepage_size = "3MiB"', ["power of two"]),
        ('name = "x/y"', ["letters, digits"]),
        ("name = 3", ["'name' is '3'"]),
        ('name = "x"\nmachine = "virt"', ["write q35, pc"]),
        ('name = "x"\n[boot]\ninitrd = "/i"', ["need a kernel"]),
        ('name = "x"\n[boot]\nkernel = "vmlinuz"', ["path from the root"]),
        ('name = "x"\n[boot]\nkernel = "/a\\u0000b"', ["control characters"]),
        ('name = "x"\nfirmware = "uefi"', ["[uefi] go together"]),
        ('name = "x"\n[[nic]]\nmodel = "e1000"', ["either bridge or tap"]),
        ('name = "x"\n[[nic]]\nbridge = "a"\ntap = "b"', ["either bridge or tap"]),
        ('name = "x"\n[[nic]]\nbridge = "averyveryverylongname"', ["no interface name"]),
        ('name = "x"\n[[nic]]\nbridge = "b"\nmac = "01:00:5e:00:00:01"', ["not the address of one card"]),
        ('name = "x"\n[[disk]]\npath = "/a"\n[[disk]]\npath = "/a"', ["the file /a is used twice"]),
        ('name = "x"\n[[disk]]\npath = "/a"\nserial = "a,b"', ["at most 20 letters"]),
        ('name = "x"\n[[disk]]\npath = ""', ["at least 1 character"]),
        ('name = "x"\n' + '[[nic]]\nbridge = "b"\n' * 9, ["at most 8 items"]),
        ("name = ", ["not TOML"]),
        ("a=" + "[" * 5000, ["not TOML"]),
        ("#" * (MAX_TEXT_CHARS + 1), ["characters"]),
    ],
)
def test_a_bad_definition_names_its_fault(text: str, words: list[str]) -> None:
    with pytest.raises(BadDefinition) as caught:
        parse_definition(text, origin="web1.toml")
    assert caught.value.message.startswith("web1.toml")
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('name = "x"\n[[passthrough]]\nhost = "0000:3b:00.1"', "0000:3b:00.1"),
        ('name = "x"\n[cpu]\nmodel = "host"', "another CPU on every host"),
        ('name = "x"\n[cpu]\nmodel = "max,-avx"', "another CPU on every host"),
        ('name = "x"\ntpm = true', "TPM"),
        ('name = "x"\ntpm = true\nmigratable = false', "TPM"),
    ],
)
def test_what_cannot_move_is_refused(text: str, word: str) -> None:
    with pytest.raises(NotMigratable) as caught:
        parse_definition(text)
    assert word in caught.value.message


def test_what_cannot_move_is_accepted_when_the_vm_is_to_stay() -> None:
    text = 'name = "x"\nmigratable = false\n[cpu]\nmodel = "host"\n[[passthrough]]\nhost = "3b:00.1"'
    assert parse_definition(text).passthrough[0].host == "3b:00.1"


_KEY = st.sampled_from(
    ["name", "cpu", "memory", "disk", "nic", "boot", "uefi", "path", "size", "count", "tap", "host", "x"]
)
_VALUE = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.sampled_from(["true", "[]", "{}", "[{}]", "[[1]]", "1979-05-27", '"/a"', '"512MiB"', '"x"', '""', '"1\\u0001"']),
)
_LINE = st.one_of(
    st.tuples(_KEY, _VALUE).map(" = ".join),
    _KEY.map("[{}]".format),
    _KEY.map("[[{}]]".format),
    st.tuples(_KEY, _KEY).map(lambda pair: f"[{pair[0]}.{pair[1]}]"),
)


@given(st.one_of(st.text(), st.lists(_LINE, max_size=8).map("\n".join)))
@example('name = "x"\n[memory]\nsize = "9999999999TiB"')
@example('name = "x"\n[memory]\nsize = -1')
@example("x = " + "9" * 5000)
@example('name = "x"\n[cpu.count]\nx = 1')
@example("[disk]\nx = 1")
@example("[[cpu]]\nx = 1")
def test_garbage_raises_only_our_errors(text: str) -> None:
    try:
        parse_definition(text)
    except LivemoveError as error:
        assert error.message and error.remedy


def test_the_documentation_is_fresh() -> None:
    """When this fails: python -m livemove.hypervisor.definition > docs/definition.md"""
    document = Path(__file__).parents[2] / "docs" / "definition.md"
    assert document.read_text() == definition_markdown()


def test_the_documented_example_is_valid() -> None:
    assert parse_definition(_EXAMPLE).memory.size_bytes == 4 * GIB
