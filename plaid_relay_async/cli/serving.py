"""What it takes to run a gateway: Plaid's credentials, an audit log, and a signal that it is to end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import re
import stat
import sys
from typing import TYPE_CHECKING

from plaid_relay_async.cli.output import put
from plaid_relay_async.cli.status import Exit, StandardError, UsageError, say
from plaid_relay_async.config import Credentials
from plaid_relay_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from plaid_relay_async.cli.signals import Signals
    from plaid_relay_async.gateway import Gateway

_AUDIT = logging.getLogger("plaid_relay_async.gateway.audit")
# A name in small letters and the end of a variable in capitals lead to each other, and to nothing else.
_SET = re.compile("PLAID_CLIENT_ID_([A-Z0-9]+(?:_[A-Z0-9]+)*)")


def variables(name: str) -> tuple[str, str]:
    """Give the environment variables of a set of credentials: of its client id and of its secret."""
    end = "" if name == "default" else "_" + name.upper().replace("-", "_")
    return f"PLAID_CLIENT_ID{end}", f"PLAID_SECRET{end}"


def credentials_in_the_environment(needed: Iterable[str]) -> dict[str, Credentials]:
    """Give all sets of credentials that the environment has, by name.

    Args:
        needed: the names of those that have to be there.

    Raises:
        UsageError: one of these isn't there as a whole, or can't be sent.
    """
    ends = (found[1] for name in sorted(os.environ) if (found := _SET.fullmatch(name)))
    names = dict.fromkeys(("default", *(end.lower().replace("_", "-") for end in ends)))
    missing = sorted(name for name in needed if not _is_there(name))
    if missing:
        lines = (f"  {name}: {' and '.join(variables(name))}" for name in missing)
        raise UsageError("\n".join(("these sets of Plaid's credentials are needed: set", *lines)))
    return {name: _credentials(name) for name in names if _is_there(name)}


def _is_there(name: str) -> bool:
    return all(os.environ.get(variable) for variable in variables(name))


def _credentials(name: str) -> Credentials:
    try:
        return Credentials(*(os.environ[variable] for variable in variables(name)))
    except ConfigurationError as error:
        which, _, wrong = error.args[0].partition(" ")
    raise UsageError(f"{variables(name)[which == 'secret']} {wrong}")


# --------------------------------------------------------------------------------------------- the audit log


class _AuditFile(logging.Handler):
    """Appends each line as a whole, or not at all; and says so once, for as long as that can't be done."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file = file
        self._failing = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            put(self._file, f"{self.format(record)}\n".encode())
        except OSError as error:
            if not self._failing:
                say(f"plaid-relay: the audit log can't be written: {error.strerror}")
            self._failing = True
        else:
            self._failing = False


@contextlib.contextmanager
def audit_log(path: Path | None) -> Iterator[None]:
    """Have the audit lines go to a file, or to standard error.

    Raises:
        UsageError: the file can't be had, or others may read it.
    """
    with contextlib.ExitStack() as stack:
        if path is None:
            handler: logging.Handler = logging.StreamHandler(StandardError())
        else:
            handler = _AuditFile(stack.enter_context(_opened(path)))
        before = _AUDIT.level, _AUDIT.propagate
        _AUDIT.setLevel(logging.INFO)
        _AUDIT.propagate = False
        _AUDIT.addHandler(handler)
        try:
            yield
        finally:
            _AUDIT.removeHandler(handler)
            _AUDIT.level, _AUDIT.propagate = before


def _opened(path: Path) -> io.FileIO:
    try:
        file = io.FileIO(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600))
    except OSError as error:
        raise UsageError(f"--audit: {path}: {error.strerror}") from None
    mode = os.fstat(file.fileno()).st_mode
    if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
        file.close()
        raise UsageError(f"--audit: {path}: others may read it; chmod 600 first")
    return file


# ---------------------------------------------------------------------------------------- until it is to end


async def serve(gateway: Gateway, signals: Signals, greeting: Callable[[], str]) -> Exit:
    """Listen, tell where, and stop at a signal once the calls in flight have ended; a second one cuts them.

    Args:
        gateway: not started yet.
        signals: those to heed.
        greeting: gives what to put on standard output once it listens.

    Raises:
        UsageError: the address can't be had.
    """
    try:
        await gateway.start()
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(f"can't listen: {getattr(error, 'strerror', None) or error}") from None
    try:
        sys.stdout.write(greeting())
        sys.stdout.flush()
        return await _until_told(gateway, signals)
    finally:
        await gateway.close()


async def _until_told(gateway: Gateway, signals: Signals) -> Exit:
    told: asyncio.Queue[None] = asyncio.Queue()
    with signals.told(lambda: told.put_nowait(None)):
        await told.get()
        closing = asyncio.ensure_future(gateway.close())
        again = asyncio.ensure_future(told.get())
        await asyncio.wait({closing, again}, return_when=asyncio.FIRST_COMPLETED)
        cut = not closing.done()
        again.cancel()
        closing.cancel()
        await asyncio.wait({closing})
    if not cut:
        closing.result()  # what went wrong in it
        return Exit.DONE
    say("plaid-relay: calls in flight were cut: nobody can tell what became of them")
    return Exit.FAILED
