"""Exceptions of the program's own code that runs while a call is reported to it, such as a callback."""

from __future__ import annotations

import asyncio
from typing import NoReturn


def contain(error: BaseException) -> None:
    """Keep an exception of the program's code out of the call, whose outcome it must not take away.

    That code isn't async, so a `CancelledError` is its own, too. The event loop itself raises what isn't an
    error, such as `SystemExit`, after the current step of the task.
    """
    if not isinstance(error, (Exception, asyncio.CancelledError)):
        asyncio.get_running_loop().call_soon(_raise, error)


def _raise(error: BaseException) -> NoReturn:
    raise error
