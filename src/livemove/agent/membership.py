"""Which certificates still count for this host, and noticing when its identity's files change.

The files of the identity directory are what counts: commands (``cluster renew``, ``cluster revoke``), the agent's own renewal
and the list that it learns from the authority's host all write them, and :meth:`Membership.changed` sees it within a second.
"""

from __future__ import annotations

import logging
from pathlib import Path

from livemove.api.client_identity import CA_FILE, CERTIFICATE_FILE
from livemove.api.revocations import REVOKED_FILE, Revocations, load_revocations, read_revocations, save_revocations
from livemove.base.errors import LivemoveError

_log = logging.getLogger(__name__)


class Membership:
    """The revoked certificates as this host knows them. Raises NoIdentity when the file is damaged."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.revocations = load_revocations(directory)
        self._stamps = self._look()

    def is_revoked(self, serial: str) -> bool:
        return serial in self.revocations.serials

    def changed(self) -> bool:
        """Whether certificate, authority or list were replaced since the last call; the list is then read anew.

        A list that is damaged, or older than ours, is not used.
        """
        stamps = self._look()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            found = load_revocations(self.directory)
        except LivemoveError as error:
            _log.error("the revoked certificates were not read anew: %s", error)
        else:
            if found.number >= self.revocations.number:
                self.revocations = found
        return True

    def learn(self, pem: str) -> bool:
        """Take a list that another host sent, if it is newer. Raises PeerViolation for a false one, StateUnwritable."""
        if not pem or pem == self.revocations.pem:
            return False
        found: Revocations = read_revocations(pem, (self.directory / CA_FILE).read_text())
        if found.number <= self.revocations.number:
            return False
        save_revocations(self.directory, found)
        self.revocations = found
        self._stamps = self._look()
        _log.info("%d certificates of the cluster are revoked", len(found.serials))
        return True

    def _look(self) -> tuple[object, ...]:
        stamps: list[object] = []
        for name in (CERTIFICATE_FILE, CA_FILE, REVOKED_FILE):
            try:
                found = (self.directory / name).stat()
                stamps.append((found.st_mtime_ns, found.st_ino))
            except OSError:
                stamps.append(None)
        return tuple(stamps)
