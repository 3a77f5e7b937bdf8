"""Rules given to the kernel's packet filter by the ``nft`` program."""

from __future__ import annotations

import asyncio
import contextlib

from livemove.base.errors import MissingPrerequisite

#: nft takes milliseconds; one that hangs must not hold up every journey.
LIMIT_S = 10.0


async def apply_rules(text: str, purpose: str, remedy: str) -> None:
    """Carry out a ruleset, all of it or nothing.

    :param purpose: what the rules are for, as in "The packet filter of a journey".
    :raise MissingPrerequisite: there is no nft, it does not end, or it refuses.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "nft", "-f", "-",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise MissingPrerequisite(f"{purpose} needs the program 'nft', which is not there.", remedy=remedy) from error
    except OSError as error:
        raise MissingPrerequisite(f"{purpose}: 'nft' cannot be started: {error.strerror}.", remedy=remedy) from error
    try:
        async with asyncio.timeout(LIMIT_S):
            _, said = await process.communicate(text.encode())
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise MissingPrerequisite(f"{purpose}: 'nft' did not end in {LIMIT_S:.0f} s.", remedy=remedy) from error
        raise
    if process.returncode:
        reason = said.decode(errors="replace").strip()[:300]
        raise MissingPrerequisite(f"{purpose}: nft refused the rules: {reason}.", remedy=remedy)
