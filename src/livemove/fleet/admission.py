"""Who may start now: a limit of journeys at a time and a first-in-first-out queue behind it. Pure bookkeeping."""

from __future__ import annotations

#: Journeys that one direction of a host lets wait: far more than a drained rack, and no more than a host that re-uses one
#: grant under many names, or a client gone wrong, may fill.
MAX_WAITING = 256


class AdmissionQueue:
    """Slots of one direction of one host.

    An entry is an id. :meth:`request` is idempotent, so that a waiting journey may ask again as often as it likes and
    keeps its place.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active: dict[str, None] = {}
        self._waiting: dict[str, None] = {}

    @property
    def active(self) -> tuple[str, ...]:
        return tuple(self._active)

    @property
    def waiting(self) -> tuple[str, ...]:
        return tuple(self._waiting)

    def set_limit(self, limit: int) -> None:
        """Change the number of slots; journeys that run keep theirs."""
        self._limit = limit

    def request(self, entry: str) -> int:
        """0 when `entry` holds a slot (now or already), else its place in the queue, from 1."""
        if entry in self._active:
            return 0
        self._waiting.setdefault(entry)
        place = list(self._waiting).index(entry) + 1
        if place <= self._limit - len(self._active):
            del self._waiting[entry]
            self._active[entry] = None
            return 0
        return place

    def release(self, entry: str) -> None:
        """Give the slot or the place back; may be called twice."""
        self._active.pop(entry, None)
        self._waiting.pop(entry, None)
