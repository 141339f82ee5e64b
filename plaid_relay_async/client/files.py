"""Save PDFs to files as they arrive: completely or not at all, and with mode 0600."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaid_relay_async.cancellation import shield_from_anyio
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.models import PdfFile

if TYPE_CHECKING:
    import io
    from collections.abc import Awaitable, Callable

    from plaid_relay_async.codec import Endpoint, RawResponse
    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import PdfResponse
    from plaid_relay_async.redaction import Hidden
    from plaid_relay_async.transport import Transport

# The errors of file systems without hard links, such as exFAT and some network file systems.
_NO_HARD_LINK_ERRORS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class PartFile:
    """A file that is being written under a temporary name, in the folder of its final name. Thread-safe.

    Args:
        path: the final path.
        link: creates a hard link, as `os.link` does.
    """

    def __init__(self, path: Path, *, link: Callable[[Path, Path], object] = os.link) -> None:
        self.size = 0
        self._path = path
        self._part = path.with_name(f".{secrets.token_hex(8)}.part")
        self._link = link
        self._lock = threading.Lock()
        self._file: io.FileIO | None = None
        self._discarded = False

    def open(self) -> None:
        """Create the file under its temporary name.

        Raises:
            FileExistsError: the final name exists.
            OSError: the file can't be created.
        """
        with self._lock:
            if self._discarded:
                return
            with contextlib.suppress(FileNotFoundError):
                self._path.lstat()  # raises also if no file can have that name
                raise FileExistsError(errno.EEXIST, "already exists", str(self._path))
            # Path.open takes no opener, and the file must have mode 0600 from the start.
            self._file = open(self._part, "xb", buffering=0, opener=_open_owner_only)  # noqa: SIM115

    def restart(self) -> None:
        """Truncate the file, to write it again from the start.

        Raises:
            OSError: it can't be truncated.
        """
        with self._lock:
            self.size = 0
            if self._file is not None:
                self._file.truncate(self._file.seek(0))

    def write(self, chunk: Hidden[bytes]) -> None:
        """Write the next chunk.

        Raises:
            OSError: it can't be written.
        """
        with self._lock:
            remaining = memoryview(chunk.reveal())
            self.size += len(remaining)
            while remaining and self._file is not None:
                remaining = remaining[self._file.write(remaining) :]

    def publish(self) -> None:
        """Close the file, and publish it under its final name.

        Raises:
            FileExistsError: another file with that name was created in the meantime.
            OSError: the file can't be closed, which may report an earlier write error, or can't be renamed.
        """
        with self._lock:
            if self._file is None or self._discarded:
                return
            self._file.close()
            # Creating a link, unlike renaming, never replaces another file.
            try:
                self._link(self._part, self._path)
            except OSError as error:
                if error.errno not in _NO_HARD_LINK_ERRORS:
                    raise
                self._rename()

    def _rename(self) -> None:
        # Renaming would replace an existing file, so the final name is reserved by an empty file first.
        os.close(_open_owner_only(str(self._path), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            self._part.replace(self._path)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise

    def discard(self) -> None:
        """Close the file, and delete its temporary name. A published file stays."""
        with self._lock:
            self._discarded = True
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._part.unlink(missing_ok=True)


def _open_owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _PartFileWriter:
    """Writes a body to a part file, each chunk in a thread.

    An error of the file system says nothing about the attempt, so it is kept until `publish` raises it.
    """

    def __init__(self, part: PartFile) -> None:
        self._part = part
        self._error: OSError | None = None

    async def start_response(self, response: RawResponse) -> bool:
        if not 200 <= response.status < 300:
            return False
        await self._run_unless_failed(self._part.restart)
        return True

    async def write(self, chunk: Hidden[bytes]) -> None:
        await self._run_unless_failed(lambda: self._part.write(chunk))

    async def _run_unless_failed(self, function: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            await _run_in_thread(function)
        except OSError as error:
            self._error = error

    async def publish(self) -> None:
        error, self._error = self._error, None  # its traceback would keep this object alive
        if error is not None:
            raise error
        await _run_in_thread(self._part.publish)


def _run_in_thread(function: Callable[[], None]) -> Awaitable[None]:
    # The function runs to its end even if the waiting task is cancelled, so no file is left behind. An error
    # that it raises after that is retrieved and dropped.
    future = asyncio.ensure_future(asyncio.to_thread(function))
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return asyncio.shield(future)


def checked_file_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file.

    Raises:
        ConfigurationError: no file can have that path.
    """
    try:
        file_path = Path(path)
        is_valid = bool(file_path.name) and b"\0" not in os.fsencode(file_path)
    except (TypeError, UnicodeEncodeError):
        is_valid = False
    if not is_valid:
        raise ConfigurationError("path must name a file, without characters that a file name can't contain")
    return Path(path)


async def download_to_file(
    transport: Transport,
    endpoint: Endpoint[Any, PdfResponse],
    request: object,
    path: Path,
    *,
    timeout: float | None,  # noqa: ASYNC109  # a deadline over attempts, not around an await
    retry: RetryPolicy | None,
) -> PdfFile:
    """Make a call, and write its PDF to a new file as it arrives.

    Raises:
        FileExistsError: the path exists.
        OSError: the file can't be written.
        PlaidRelayError: the call failed.
    """
    part = PartFile(path)
    writer = _PartFileWriter(part)
    try:
        await _run_in_thread(part.open)
        pdf = await transport.call(endpoint, request, timeout=timeout, retry=retry, body_writer=writer)
        await writer.publish()
    finally:
        # An AnyIO cancel scope would otherwise cancel this cleanup at each await.
        with shield_from_anyio():
            await _run_in_thread(part.discard)
    return PdfFile(path, part.size, pdf.request_id)
