"""Codes and exit codes are unique, and an error survives the wire."""

from __future__ import annotations

import pytest

from livemove.base.errors import LivemoveError, UnknownVm, error_from_json, every_error


def test_codes_and_exit_codes_are_unique_and_documented():
    kinds = list(every_error())
    assert len({kind.code for kind in kinds}) == len(kinds) == len({kind.exit_code for kind in kinds})
    assert all(kind.__doc__ and kind.remedy_text for kind in kinds)
    assert all(0 < kind.exit_code < 126 for kind in kinds)
    # 2 is for usage, which the command line adds to the tree
    assert all(kind.exit_code != 2 for kind in kinds if kind.__module__.startswith("livemove.base.errors."))


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.code)
def test_round_trip(kind: type[LivemoveError]):
    error = kind("It broke.", where="a", details={"n": 1})
    again = error_from_json(error.to_json())
    assert type(again) is kind
    assert again.to_json() == error.to_json()


def test_a_strange_code_is_still_an_error():
    assert type(error_from_json({"code": "from-the-future", "message": "x"})) is LivemoveError
    assert error_from_json({}).message == "no message"
    assert isinstance(error_from_json({"code": "unknown-vm", "message": 3, "details": "?"}), UnknownVm)
