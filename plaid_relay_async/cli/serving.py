"""Runs a gateway for the command: credentials, the certificate, the audit log, and signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl as tls
import stat
import sys
from typing import TYPE_CHECKING

from plaid_relay_async import private_files
from plaid_relay_async.cli.logs import AuditFormatter, print_message, writes_json
from plaid_relay_async.cli.messages import ExitStatus, StderrWriter, UsageError
from plaid_relay_async.cli.output import write_all
from plaid_relay_async.config import Credentials
from plaid_relay_async.errors import ConfigurationError

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from plaid_relay_async.cli.signals import Signals
    from plaid_relay_async.gateway import Gateway

_AUDIT_LOGGER = logging.getLogger("plaid_relay_async.gateway.audit")
# The name of a set of credentials is in lower case with hyphens, the suffix of its variables in upper case
# with underscores. The pattern allows only suffixes for which that mapping is unambiguous in both directions.
_CLIENT_ID_VARIABLE = re.compile("PLAID_CLIENT_ID_([A-Z0-9]+(?:_[A-Z0-9]+)*)")


def variable_names(name: str) -> tuple[str, str]:
    """Return the environment variables of a set of credentials: of its client ID and of its secret."""
    suffix = "" if name == "default" else "_" + name.upper().replace("-", "_")
    return f"PLAID_CLIENT_ID{suffix}", f"PLAID_SECRET{suffix}"


def credentials_from_environment(required: Iterable[str]) -> dict[str, Credentials]:
    """Return all complete sets of credentials in the environment, by name.

    Args:
        required: the names of the sets that must be complete.

    Raises:
        UsageError: a required set is incomplete, or a value can't be sent.
    """
    suffixes = (match[1] for name in sorted(os.environ) if (match := _CLIENT_ID_VARIABLE.fullmatch(name)))
    names = dict.fromkeys(("default", *(suffix.lower().replace("_", "-") for suffix in suffixes)))
    missing = sorted(name for name in required if not _is_configured(name))
    if missing:
        lines = (f"  {name}: {' and '.join(variable_names(name))}" for name in missing)
        raise UsageError("Plaid credentials are missing; set these environment variables:", *lines)
    return {name: _read_credentials(name) for name in names if _is_configured(name)}


def _is_configured(name: str) -> bool:
    return all(os.environ.get(variable) for variable in variable_names(name))


def _read_credentials(name: str) -> Credentials:
    try:
        return Credentials(*(os.environ[variable] for variable in variable_names(name)))
    except ConfigurationError as error:
        field, problem = error.field, error.problem
    raise UsageError(f"{variable_names(name)[field == 'secret']} {problem}")


# ------------------------------------------------------------------------------------------- the certificate


class Certificate:
    """A TLS certificate that can be replaced while the gateway runs.

    Args:
        chain: the PEM file of the certificate, with its chain.
        key: the PEM file of its key.

    Attributes:
        context: uses the newest certificate for each handshake.

    Raises:
        UsageError: the files can't be read, or don't match.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self._current_context = self.context = self._load_context()
        # A context that is in use is never changed. If the new key didn't match, every handshake would fail,
        # and if it had another type, OpenSSL would keep the old certificate in addition to the new one.
        self.context.sni_callback = self._use_current_context

    def reload(self) -> None:
        """Read the files again.

        Raises:
            UsageError: the files can't be read, or don't match; the previous certificate stays in use.
        """
        self._current_context = self._load_context()

    def _use_current_context(
        self, connection: tls.SSLObject, _name: str | None, _context: tls.SSLContext
    ) -> None:
        connection.context = self._current_context

    def _load_context(self) -> tls.SSLContext:
        context = tls.create_default_context(tls.Purpose.CLIENT_AUTH)
        try:
            # Without a password OpenSSL would prompt for one.
            context.load_cert_chain(self._chain, self._key, password="")
        except (OSError, ValueError) as error:
            problem = "must be PEM files of a certificate and its key, without a passphrase"
            if not isinstance(error, tls.SSLError) and getattr(error, "strerror", None):
                problem = f"can't be read: {error.strerror}"  # type: ignore[union-attr]  # as checked above
        else:
            return context
        raise UsageError(f"--tls-certificate and --tls-key: {problem}")


# --------------------------------------------------------------------------------------------- the audit log


class AuditFile(logging.Handler):
    """A log handler that appends complete lines to a file, and reports consecutive failures once.

    Raises:
        UsageError: the file can't be opened, or its permissions are too open.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = _open_audit_file(path)
        self._failing = False

    def reload(self) -> None:
        """Reopen the file by its path, because a log rotation may have renamed it.

        Raises:
            UsageError: it can't be opened, or its permissions are too open; the old file stays in use.
        """
        # A pipe is not reopened, because that would wait for its reader.
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            return
        file = _open_audit_file(self._path)
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
            write_all(self._file, f"{self.format(record)}\n".encode())
        except OSError as error:
            if not self._failing:
                print_message(
                    f"plaid-relay: the audit log can't be written: {error.strerror}", level=logging.ERROR
                )
            self._failing = True
        else:
            self._failing = False


def audit_log(file: AuditFile | None) -> contextlib.AbstractContextManager[None]:
    """Send audit lines to a file or to standard error; at the end, restore the logger, and close the file."""
    if file is not None:
        return handling_log(_AUDIT_LOGGER, file)
    handler = logging.StreamHandler(StderrWriter())
    if writes_json():
        handler.setFormatter(AuditFormatter())
    return handling_log(_AUDIT_LOGGER, handler)


@contextlib.contextmanager
def handling_log(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    """Pass what a logger logs at level INFO or above to a handler alone; at the end, close the handler."""
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.close()


def _open_audit_file(path: Path) -> io.FileIO:
    try:
        return private_files.open_for_append(path)
    except OSError as error:
        raise UsageError(f"--audit: {path}: {error.strerror}") from None


# ------------------------------------------------------------------------------------------------- signals


async def serve_gateway(
    gateway: Gateway,
    signals: Signals,
    greeting: Callable[[], str],
    reloadables: Sequence[Certificate | AuditFile] | None = None,
) -> ExitStatus:
    """Run a gateway until a signal. The calls in flight are drained; a second signal ends the drain.

    Args:
        gateway: the gateway, which is not started yet.
        signals: the signals of the process.
        greeting: returns the text to print on standard output once the gateway listens.
        reloadables: objects that SIGHUP reloads in addition to the keys; without it, SIGHUP stops the
            gateway.

    Returns:
        `DONE`, or `FAILED` if calls in flight were cut off.

    Raises:
        UsageError: the address isn't available.
    """
    try:
        await gateway.start()
    except (OSError, UnicodeError) as error:
        raise UsageError(f"can't listen: {getattr(error, 'strerror', None) or error}") from None
    # Signal handlers only put into these queues; the work is done by coroutines that wait for them.
    stops: asyncio.Queue[None] = asyncio.Queue()
    hang_ups: asyncio.Queue[None] = asyncio.Queue()
    reloading = asyncio.ensure_future(_reload_on_sighup(hang_ups, gateway, reloadables or ()))
    try:
        sys.stdout.write(greeting())
        sys.stdout.flush()
        reload = None if reloadables is None else lambda: hang_ups.put_nowait(None)
        with signals.handled_by(lambda: stops.put_nowait(None), reload):
            return await _wait_for_stop(gateway, stops)
    finally:
        reloading.cancel()
        await gateway.close()


async def _wait_for_stop(gateway: Gateway, stops: asyncio.Queue[None]) -> ExitStatus:
    await stops.get()
    closing = asyncio.ensure_future(gateway.close())
    second_stop = asyncio.ensure_future(stops.get())
    await asyncio.wait({closing, second_stop}, return_when=asyncio.FIRST_COMPLETED)
    second_stop.cancel()
    closing.cancel()
    await asyncio.wait({closing})
    if not closing.cancelled() and closing.result():  # result() raises the error of closing, if any
        return ExitStatus.DONE
    print_message(
        "plaid-relay: calls in flight were cut off; their outcome is unknown", level=logging.WARNING
    )
    return ExitStatus.FAILED


async def _reload_on_sighup(
    hang_ups: asyncio.Queue[None], gateway: Gateway, reloadables: Sequence[Certificate | AuditFile]
) -> None:
    """Reload at each SIGHUP, and report whether everything was reloaded.

    While the key file can't be used, no caller is admitted. Of another file, the previous content is used.
    """
    while True:
        await hang_ups.get()
        problems = []
        try:
            await gateway.reload()
        except ConfigurationError as error:
            problems.append(f"no caller is admitted: {error.args[0]}")
        for each in reloadables:
            try:
                await asyncio.to_thread(each.reload)  # reading files would block the event loop
            except (UsageError, OSError) as error:
                problems.append(f"the previous one stays in use: {error}")
        for problem in problems:
            print_message(f"plaid-relay: error: not reloaded, {problem}", level=logging.ERROR)
        if not problems:
            print_message("plaid-relay: reloaded")
