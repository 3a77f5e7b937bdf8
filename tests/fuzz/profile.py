"""How many examples: few in `make test`, as many as FUZZ_EXAMPLES says in `make fuzz`."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    derandomize=EXAMPLES <= 40,
)

#: Any JSON value, deep and odd ones among them.
anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["", "web1", "A", "0"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def altered(draw: st.DrawFn, text: bytes) -> bytes:
    """`text` with some pieces cut out, doubled, exchanged or overwritten."""
    data = bytearray(text)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 12)))
        what = draw(st.sampled_from(["cut", "double", "write", "end"]))
        if what == "cut":
            del data[at:end]
        elif what == "double":
            data[at:at] = data[at:end]
        elif what == "write":
            data[at:end] = draw(
                st.binary(max_size=12) | st.sampled_from([b"[[", b"]]", b'"""', b"= ", b"\n", b"1e999", b"\xff"])
            )
        else:
            del data[at:]
    return bytes(data)
