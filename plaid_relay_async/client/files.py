"""PDFs into files, as they arrive: whole or not at all, and for their owner's eyes alone."""

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
    from plaid_relay_async.errors import Hidden
    from plaid_relay_async.models import PdfResponse
    from plaid_relay_async.transport import Transport

# What says that a file system has no links: exFAT, and some that are mounted from elsewhere.
_NO_HARD_LINK_ERRORS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class PartFile:
    """A file under way, beside the one that it will be. Its methods may be called from several threads.

    Args:
        path: where it will be.
        link: gives a file a second name, which must be free.
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
        """Make the file.

        Raises:
            FileExistsError: there is one already under the name that it will have.
            OSError: it can't be made.
        """
        with self._lock:
            if self._discarded:
                return
            with contextlib.suppress(FileNotFoundError):
                self._path.lstat()  # raises also where no file can have that name
                raise FileExistsError(errno.EEXIST, "is there already", str(self._path))
            # Path.open takes no opener, and the file must be private from its first moment.
            self._file = open(self._part, "xb", buffering=0, opener=_open_owner_only)  # noqa: SIM115

    def restart(self) -> None:
        """Forget what was written.

        Raises:
            OSError: that can't be done.
        """
        with self._lock:
            self.size = 0
            if self._file is not None:
                self._file.truncate(self._file.seek(0))

    def write(self, chunk: Hidden[bytes]) -> None:
        """Write the next piece.

        Raises:
            OSError: it can't be written.
        """
        with self._lock:
            left = memoryview(chunk.reveal())
            self.size += len(left)
            while left and self._file is not None:
                left = left[self._file.write(left) :]

    def publish(self) -> None:
        """Give the file its name.

        Raises:
            FileExistsError: another has got that name meanwhile.
            OSError: that can't be done, or the file couldn't be written to its end.
        """
        with self._lock:
            if self._file is None or self._discarded:
                return
            self._file.close()
            # A link, unlike a renaming, never takes the place of another file.
            try:
                self._link(self._part, self._path)
            except OSError as error:
                if error.errno not in _NO_HARD_LINK_ERRORS:
                    raise
                self._rename()

    def _rename(self) -> None:
        os.close(_open_owner_only(str(self._path), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            self._part.replace(self._path)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise

    def discard(self) -> None:
        """Close the file, and take away what isn't published."""
        with self._lock:
            self._discarded = True
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._part.unlink(missing_ok=True)


def _open_owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _PartFileWriter:
    """Writes a body into a part file, each piece in a thread.

    What prevents that is no trouble with Plaid: it is kept until `publish`.
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

    async def _run_unless_failed(self, act: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            await _run_in_thread(act)
        except OSError as error:
            self._error = error

    async def publish(self) -> None:
        trouble, self._error = self._error, None  # or its traceback would keep all of this alive
        if trouble is not None:
            raise trouble
        await _run_in_thread(self._part.publish)


def _run_in_thread(act: Callable[[], None]) -> Awaitable[None]:
    # Once begun it ends, also where its waiter is cancelled; so nothing is left behind. What it raises then
    # is nobody's business any more.
    ending = asyncio.ensure_future(asyncio.to_thread(act))
    ending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return asyncio.shield(ending)


def checked_file_path(path: str | os.PathLike[str]) -> Path:
    """Return the path.

    Raises:
        ConfigurationError: no file can have that name.
    """
    try:
        whole = Path(path)
        usable = bool(whole.name) and b"\0" not in os.fsencode(whole)
    except (TypeError, UnicodeEncodeError):
        usable = False
    if not usable:
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
    """Make the call and have its PDF written to the path as it arrives."""
    part = PartFile(path)
    sink = _PartFileWriter(part)
    try:
        await _run_in_thread(part.open)
        pdf = await transport.call(endpoint, request, timeout=timeout, retry=retry, body_writer=sink)
        await sink.publish()
    finally:
        with shield_from_anyio():
            await _run_in_thread(part.discard)
    return PdfFile(path, part.size, pdf.request_id)
