"""What it takes to run a gateway: Plaid's credentials, a certificate, an audit log, and signals."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import re
import ssl as tls
import stat
import sys
from typing import TYPE_CHECKING

from plaid_relay_async.cli.output import put
from plaid_relay_async.cli.status import Exit, StandardError, UsageError, say
from plaid_relay_async.config import Credentials
from plaid_relay_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
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
        raise UsageError("these sets of Plaid's credentials are needed: set", *lines)
    return {name: _credentials(name) for name in names if _is_there(name)}


def _is_there(name: str) -> bool:
    return all(os.environ.get(variable) for variable in variables(name))


def _credentials(name: str) -> Credentials:
    try:
        return Credentials(*(os.environ[variable] for variable in variables(name)))
    except ConfigurationError as error:
        field, wrong = error.field, error.problem
    raise UsageError(f"{variables(name)[field == 'secret']} {wrong}")


# ------------------------------------------------------------------------------------------- the certificate


class Certificate:
    """A TLS certificate that can be replaced while the gateway runs.

    Args:
        chain: the PEM file of the certificate, with its chain.
        key: the PEM file of its key.

    Attributes:
        context: uses the newest certificate for each handshake.

    Raises:
        UsageError: the files can't be read, or don't belong together.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self._newest = self.context = self._loaded()
        # A context that is in use is never changed: if the new key didn't match, every handshake would fail,
        # and if it were of another kind, OpenSSL would keep the old certificate beside the new one.
        self.context.sni_callback = self._use_newest

    def reload(self) -> None:
        """Read the files again.

        Raises:
            UsageError: they can't be used; the certificate stays what it was.
        """
        self._newest = self._loaded()

    def _use_newest(self, connection: tls.SSLObject, _name: str | None, _context: tls.SSLContext) -> None:
        connection.context = self._newest

    def _loaded(self) -> tls.SSLContext:
        context = tls.create_default_context(tls.Purpose.CLIENT_AUTH)
        try:
            # Without a password OpenSSL would prompt for one.
            context.load_cert_chain(self._chain, self._key, password="")
        except (OSError, ValueError) as error:
            problem = "aren't a certificate and its key, without a passphrase, in PEM"
            if not isinstance(error, tls.SSLError) and getattr(error, "strerror", None):
                problem = f"can't be read: {error.strerror}"  # type: ignore[union-attr]  # it has one
        else:
            return context
        raise UsageError(f"--tls-certificate and --tls-key: {problem}")


# --------------------------------------------------------------------------------------------- the audit log


class AuditFile(logging.Handler):
    """A handler that appends each line as a whole or not at all, and reports a failure once while it lasts.

    Raises:
        UsageError: the file can't be opened, or its permissions are too open.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = _opened(path)
        self._failing = False

    def reload(self) -> None:
        """Reopen the file by its path, because a log rotation may have renamed it.

        Raises:
            UsageError: it can't be opened, or its permissions are too open; lines go on into the old file.
        """
        # Opening a pipe again would wait for its reader.
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            return
        file = _opened(self._path)
        self.acquire()
        try:
            file, self._file = self._file, file
        finally:
            self.release()
        file.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            put(self._file, f"{self.format(record)}\n".encode())
        except OSError as error:
            if not self._failing:
                say(f"plaid-relay: the audit log can't be written: {error.strerror}")
            self._failing = True
        else:
            self._failing = False


@contextlib.contextmanager
def audit_log(file: AuditFile | None) -> Iterator[None]:
    """Send the audit lines to a file, or to standard error, and close the file in the end."""
    handler = logging.StreamHandler(StandardError()) if file is None else file
    before = _AUDIT.level, _AUDIT.propagate
    _AUDIT.setLevel(logging.INFO)
    _AUDIT.propagate = False
    _AUDIT.addHandler(handler)
    try:
        yield
    finally:
        _AUDIT.removeHandler(handler)
        _AUDIT.level, _AUDIT.propagate = before
        handler.close()


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


# ------------------------------------------------------------------------------------------------- signals


async def serve(
    gateway: Gateway,
    signals: Signals,
    greeting: Callable[[], str],
    reloaded: Sequence[Certificate | AuditFile] | None = None,
) -> Exit:
    """Listen, and stop at a signal once the calls in flight have ended; a second signal cuts them off.

    Args:
        gateway: not started yet.
        signals: those of the process.
        greeting: returns what to print on standard output once it listens.
        reloaded: what SIGHUP reloads in addition to the keys; without it, SIGHUP stops the gateway.

    Raises:
        UsageError: the address can't be had.
    """
    try:
        await gateway.start()
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(f"can't listen: {getattr(error, 'strerror', None) or error}") from None
    stops: asyncio.Queue[None] = asyncio.Queue()
    hang_ups: asyncio.Queue[None] = asyncio.Queue()
    reloading = asyncio.ensure_future(_reload_at_each(hang_ups, gateway, reloaded or ()))
    try:
        sys.stdout.write(greeting())
        sys.stdout.flush()
        reload = None if reloaded is None else lambda: hang_ups.put_nowait(None)
        with signals.told(lambda: stops.put_nowait(None), reload):
            return await _until_stopped(gateway, stops)
    finally:
        reloading.cancel()
        await gateway.close()


async def _until_stopped(gateway: Gateway, stops: asyncio.Queue[None]) -> Exit:
    await stops.get()
    closing = asyncio.ensure_future(gateway.close())
    again = asyncio.ensure_future(stops.get())
    await asyncio.wait({closing, again}, return_when=asyncio.FIRST_COMPLETED)
    cut = not closing.done()
    again.cancel()
    closing.cancel()
    await asyncio.wait({closing})
    if not cut:
        closing.result()  # what went wrong in it
        return Exit.DONE
    say("plaid-relay: calls in flight were cut off: their outcome is unknown")
    return Exit.FAILED


async def _reload_at_each(
    hang_ups: asyncio.Queue[None], gateway: Gateway, reloaded: Sequence[Certificate | AuditFile]
) -> None:
    """Reload at each SIGHUP; what can't be reloaded stays as it was, and is reported."""
    while True:
        await hang_ups.get()
        gateway.reload()
        failed = False
        for each in reloaded:
            try:
                await asyncio.to_thread(each.reload)
            except (UsageError, OSError) as error:
                failed = True
                say(f"plaid-relay: error: not reloaded, the previous one stays in use: {error}")
        if not failed:
            say("plaid-relay: reloaded")
