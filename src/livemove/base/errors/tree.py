"""What all errors have in common, and their groups; the errors themselves are in the modules beside this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class LivemoveError(Exception):
    """What happened, where, and what to do.

    :param message: one sentence, naming the thing that is wrong and the values that show it.
    :param remedy: what the reader can do; the class's own remedy when not given.
    :param where: the host on which it happened, when that is not obvious.
    :param details: further facts for JSON output (plain values only).
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    remedy_text: ClassVar[str] = "See the agent's log on the named host."

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        where: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy if remedy is not None else self.remedy_text
        self.where = where
        self.details: dict[str, Any] = dict(details or {})

    def to_json(self) -> dict[str, Any]:
        """The form in which an error crosses the API and appears under ``--json``."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
            "remedy": self.remedy,
            "where": self.where,
            "details": self.details,
        }


def error_from_json(data: Mapping[str, Any]) -> LivemoveError:
    """The error that :meth:`LivemoveError.to_json` described; unknown codes become a plain :class:`LivemoveError`."""
    kind = by_code().get(str(data.get("code")), LivemoveError)
    details = data.get("details")
    return kind(
        str(data.get("message", "no message"))[:4000],
        remedy=str(data["remedy"])[:4000] if data.get("remedy") is not None else None,
        where=str(data["where"]) if data.get("where") else None,
        details=details if isinstance(details, Mapping) else None,
    )


def every_error() -> Iterator[type[LivemoveError]]:
    """Every error class that has a code of its own, by exit code."""

    def below(kind: type[LivemoveError]) -> Iterator[type[LivemoveError]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    yield from sorted((kind for kind in below(LivemoveError) if "code" in vars(kind)), key=lambda kind: kind.exit_code)


def by_code() -> dict[str, type[LivemoveError]]:
    return {kind.code: kind for kind in every_error()}


class CallerError(LivemoveError):
    """The command or its input was wrong; nothing was changed."""


class OperatorError(LivemoveError):
    """The hosts are not as they must be; nothing was moved."""


class LinkError(LivemoveError):
    """The other side did not answer."""


class HypervisorError(LivemoveError):
    """QEMU refused a command or went away."""


class JourneyError(LivemoveError):
    """A journey ended without moving the VM."""
