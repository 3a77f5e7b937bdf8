from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemove.base.errors import BadSetting
from livemove.policy.paths import MAX_LISTED, PathWish, UsePaths, parse_wish


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("one", PathWish(UsePaths.ONE)),
        ("all", PathWish(UsePaths.ALL)),
        (" all ", PathWish(UsePaths.ALL)),
        ("fast", PathWish(UsePaths.LISTED, ("fast",))),
        ("10.1.0.0/24, fd00::/64", PathWish(UsePaths.LISTED, ("10.1.0.0/24", "fd00::/64"))),
    ],
)
def test_a_wish_is_read(text: str, wish: PathWish) -> None:
    assert parse_wish(text) == wish


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an entry is empty"),
        ("a,,b", "an entry is empty"),
        ("one,10.1.0.0/24", "'one' stands alone"),
        ("a,b,a", "'a' is in it twice"),
        (",".join(f"n{number}" for number in range(MAX_LISTED + 1)), f"it has {MAX_LISTED + 1} entries"),
    ],
)
def test_a_wish_that_is_none(text: str, says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        parse_wish(text)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_wish_or_refused(text: str) -> None:
    try:
        wish = parse_wish(text)
    except BadSetting:
        return
    assert (wish.use is UsePaths.LISTED) == bool(wish.listed)
