"""Python run in a network namespace of its own, which ends with it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_FRAME = """
import asyncio, json, subprocess
def ip(*words): return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
{code}
print(json.dumps(result))
"""


def in_a_namespace(code: str) -> Any:
    """What `code` puts into `result`."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", _FRAME.format(code=code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
