"""What ``migrate`` and ``plan`` can be told about a journey, and its form in the API."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.errors import BadQuantity
from livemove.cli.verb import complete_hosts

if TYPE_CHECKING:
    from livemove.api.models import JourneyOptions


class PerformanceOption(enum.StrEnum):
    """The presets of the design; those that are not there yet are not offered."""

    AUTO = "auto"
    TCP = "tcp"
    COMPRESSION = "compression"
    MULTICHANNEL = "multichannel"


class Verification(enum.StrEnum):
    """How much is compared."""

    FULL = "full"
    SAMPLE = "sample"
    OFF = "off"


To = Annotated[str, typer.Option("--to", metavar="HOST", help="The destination.", autocompletion=complete_hosts)]
Option = Annotated[
    PerformanceOption | None,
    typer.Option(
        "--option",
        metavar="auto|tcp|compression|multichannel",
        help="Performance option; else the source's setting.",
    ),
]
Paths = Annotated[
    str | None,
    typer.Option(
        "--paths",
        metavar="one|all|LIST",
        help="Networks to use: one, all allowed, or subnets and names with commas.",
    ),
]
Downtime = Annotated[str | None, typer.Option(metavar="TIME", help="Longest downtime allowed, such as 300ms.")]
Deadline = Annotated[
    str | None, typer.Option(metavar="TIME", help="Give up after this long, such as 10m; the VM then runs on.")
]
Throttle = Annotated[bool, typer.Option("--throttle", help="Allow slowing the guest down.")]
Channels = Annotated[
    int | None, typer.Option(metavar="N", min=0, max=64, help="Connections; 0: from link speed and cores.")
]
MaxBandwidth = Annotated[
    str | None, typer.Option(metavar="RATE", help="Highest rate, such as 8Gbit or 1000MB (per second).")
]
Verify = Annotated[
    Verification | None,
    typer.Option(
        "--verify", metavar="full|sample|off", help="Compare the memory on both hosts before the VM runs there."
    ),
]


def parse_options(
    option: PerformanceOption | None,
    paths: str | None,
    downtime: str | None,
    deadline: str | None,
    throttle: bool,
    channels: int | None,
    max_bandwidth: str | None,
    verify: Verification | None,
) -> JourneyOptions:
    """The options as the API takes them. Raises BadQuantity naming the one that is wrong, BadSetting for `paths`."""
    from pydantic import ValidationError

    from livemove.api.models import JourneyOptions
    from livemove.base.settings import describe_validation
    from livemove.base.units import parse_duration, parse_rate
    from livemove.policy.paths import parse_wish

    if paths is not None:
        parse_wish(paths)
    try:
        return JourneyOptions(
            option=option.value if option is not None else None,
            paths=paths,
            downtime_s=parse_duration(downtime) if downtime is not None else None,
            deadline_s=parse_duration(deadline) if deadline is not None else None,
            throttle=throttle,
            channels=channels,
            max_bandwidth_bytes_per_s=parse_rate(max_bandwidth) if max_bandwidth is not None else None,
            verify=verify.value if verify is not None else None,
        )
    except ValidationError as error:
        raise BadQuantity(describe_validation(error), remedy="'livemove migrate --help' gives examples.") from error
