"""The bandwidth limits of a host, on disk: bandwidth.json in its state directory, replaced whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from livemove.api.bandwidth_models import BandwidthLimit, limit_body
from livemove.base.errors import LivemoveError, StateDamaged, StateUnwritable
from livemove.policy.bandwidth import Category, Limits, check_limit

FILE = "bandwidth.json"


class BandwidthStore:
    """Read once, when it is made. Raises StateDamaged when the file is not what was written."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._limits = _read(self._path)

    @property
    def limits(self) -> Limits:
        return self._limits

    def replace(self, limits: Limits) -> None:
        """Make these the limits, on disk first. Raises StateUnwritable; the old ones then stay."""
        temporary = self._path.with_name(FILE + ".new")
        text = json.dumps(
            [limit_body(limits[name]).model_dump(mode="json") for name in Category if name in limits], indent=1
        )
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("w") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise StateUnwritable(f"{self._path} cannot be written: {error.strerror}.") from error
        self._limits = dict(limits)


def _read(path: Path) -> Limits:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise StateDamaged(f"{path} cannot be read: {error}.") from error
    try:
        limits = [BandwidthLimit.model_validate(entry).to_limit() for entry in json.loads(text)]
        for limit in limits:
            check_limit(limit)
    except (ValueError, TypeError, RecursionError, ValidationError, LivemoveError) as error:
        raise StateDamaged(
            f"{path} is not what livemove wrote: {str(error).splitlines()[0][:200].rstrip('.')}.",
            remedy="Remove the file and set the limits anew with 'livemove bandwidth set'.",
        ) from error
    return {limit.category: limit for limit in limits}
