from __future__ import annotations

from livemove.api.network_models import LeftOutPath, PathMeasured, PathReport, PathView
from livemove.cli.path_text import plan_path_lines, report_path_lines
from livemove.cli.report_text import plan_lines, report_lines

from .fake_agent import plan_view, report_view

GBIT = 125_000_000
LEFT_OUT = [LeftOutPath(what="A eth3 10.3.0.1", reason="no carrier on A's eth3")]


def view(number: int, **changes: object) -> PathView:
    fields: dict[str, object] = {
        "source_address": f"10.{number}.0.1",
        "destination_address": f"10.{number}.0.2",
        "network": f"10.{number}.0.0/24",
        "name": "",
        "source_link": f"eth{number}",
        "destination_link": "bond0",
        "capacity_bytes_per_s": GBIT,
        "mtu": 9000,
    }
    return PathView.model_validate({**fields, **changes})


def carried(number: int, **changes: object) -> PathReport:
    fields = view(number).model_dump(exclude={"name", "mtu", "state"})
    return PathReport.model_validate({**fields, **changes})


def test_a_plan_tells_its_paths_and_why_the_others_are_left_out() -> None:
    paths = [view(1, name="fast"), view(2, state="spare", capacity_bytes_per_s=0)]
    lines = plan_path_lines(paths, LEFT_OUT)
    assert lines[1] == "paths:"
    assert lines[3].split("  ")[1].strip() == "10.1.0.1 to 10.1.0.2"
    assert "eth1 to bond0" in lines[3] and "10.1.0.0/24 (fast)" in lines[3] and lines[3].endswith("9000  used")
    assert "unknown" in lines[4] and lines[4].endswith("spare, if those used are unavailable at the start")
    assert "livemove network test" in lines[6]
    assert lines[7:] == ["", "paths left out:", "  A eth3 10.3.0.1: no carrier on A's eth3"]
    assert "\n".join(lines) in "\n".join(
        plan_lines(plan_view().model_copy(update={"paths": paths, "paths_left_out": LEFT_OUT}))
    )
    assert plan_path_lines([], []) == []


def test_a_report_tells_what_each_path_carried() -> None:
    mib = 1 << 20
    paths = [
        carried(1, capacity_bytes_per_s=4 * GBIT, source_bytes=800 * mib, destination_bytes=801 * mib, share=0.79,
                removed=2, longest_silence_ms=1310.0, measured=PathMeasured(mtu_out=9000, mtu_in=1500, round_trip_ms=0.31)),
        carried(2, source_bytes=200 * mib, destination_bytes=200 * mib, share=0.2, removed=1,
                measured=PathMeasured(mtu_out=1500, mtu_in=1500)),
        carried(9, planned=False, network="", source_link="", source_bytes=mib, share=0.01),
    ]  # fmt: skip
    lines = report_path_lines(paths, LEFT_OUT)
    text = "\n".join(lines)
    assert lines[2].split() == [
        "path",
        "NICs",
        "network",
        "sent",
        "received",
        "share",
        "of",
        "capacity",
        "removed",
        "silent",
        "MTU",
        "round",
        "trip",
    ]
    assert "800.0 MiB  801.0 MiB  79%    80%" in lines[3]
    assert "2 times  1.31 s  9000 there, 1500 back  310 us" in lines[3]
    assert "20%    20%          once     -       1500" in lines[4]
    assert "? to bond0" in lines[5] and "never" in lines[5]
    assert lines[6] == "  NOT PLANNED: 10.9.0.1 to 10.9.0.2 carried 1.0 MiB"
    assert text in "\n".join(report_lines(report_view(paths=paths, paths_left_out=LEFT_OUT)))
    assert "  0%     -            never" in report_path_lines([carried(1, capacity_bytes_per_s=0)], [])[3], (
        "unknown capacity has no share"
    )
    assert report_path_lines([], LEFT_OUT)[1] == "paths left out:"
    (_, _, _, one_way) = report_path_lines([carried(1, measured=PathMeasured(mtu_out=9000))], [])
    assert "9000 there, none back" in one_way
