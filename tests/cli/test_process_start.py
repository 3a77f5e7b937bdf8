from __future__ import annotations

import subprocess
import sys

from livemove.base.clock import ManualClock, SystemClock
from livemove.cli.process_start import process_start_s


def test_the_time_before_python_counts() -> None:
    code = """
import time; time.sleep(0.2)
from livemove.base.clock import SystemClock
from livemove.cli.process_start import process_start_s
print(process_start_s(SystemClock()))
"""
    before_s = SystemClock().monotonic_s()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after_s = SystemClock().monotonic_s()
    # the kernel counts in hundredths of a second
    assert before_s - 0.02 <= float(done.stdout) <= after_s - 0.2


def test_a_start_in_the_future_is_not_believed() -> None:
    assert process_start_s(ManualClock(monotonic_s=1.0)) == 1.0
