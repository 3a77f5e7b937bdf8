"""Logging set-up: one line an event, to standard error, readable by people and by journald.

error: an action that somebody asked for did not happen. warning: odd but harmless. info: a change of state. debug: the
rest. Pure code does not log; it returns reasons, and whoever acts on them logs.
"""

from __future__ import annotations

import logging
import sys


def set_up_logging(level: str = "info") -> None:
    """Log to standard error at `level` (debug, info, warning or error)."""
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    for chatty in ("httpx", "httpcore", "qemu.qmp", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
