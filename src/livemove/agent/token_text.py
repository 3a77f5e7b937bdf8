"""Tokens as one printable line: a prefix that names kind and version, then parts in base64url, joined by dots."""

from __future__ import annotations

import base64

from livemove.base.errors import NotPermitted


def seal_token(prefix: str, *parts: bytes) -> str:
    """``lmg1.<part>.<part>``"""
    return ".".join([prefix, *(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)])


def open_token(text: str, prefix: str, *, parts: int, max_chars: int, what: str, remedy: str) -> list[bytes]:
    """The parts again. Raises NotPermitted, never anything else; nothing is decoded before the length is checked.

    :param remedy: of every error.

    Only the spelling that :func:`seal_token` makes is taken, so that one token has one text.
    """
    if len(text) > max_chars:
        raise NotPermitted(f"The {what} has {len(text)} characters; at most {max_chars} are read.", remedy=remedy)
    head, *encoded = text.split(".")
    if head != prefix:
        raise NotPermitted(f"The {what} does not begin with '{prefix}.'.", remedy=remedy)
    if len(encoded) != parts:
        raise NotPermitted(f"The {what} has {len(encoded)} parts instead of {parts}.", remedy=remedy)
    try:
        decoded = [base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True) for part in encoded]
    except ValueError as error:
        raise NotPermitted(f"The {what} is not base64url; was it copied whole?", remedy=remedy) from error
    if seal_token(prefix, *decoded) != text:
        raise NotPermitted(f"The {what} is not base64url as livemove writes it.", remedy=remedy)
    return decoded
