"""What several test modules share."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

from plaid_relay_async import Credentials, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OWNER = Credentials("owner", "secret-of-the-owner")
PARTNER = Credentials("partner", "secret-of-the-partner")
QUICK = RetryPolicy(backoff=0.001, max_backoff=0.002)


def most_in_a_window(moments, per):
    """The most moments that a half-open window of this length holds, wherever it begins."""
    return max(sum(start <= moment < start + per for moment in moments) for start in moments)


@contextlib.asynccontextmanager
async def program(source: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program in Python's development mode, where every warning is shown."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-X", "dev", "-c", source, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
