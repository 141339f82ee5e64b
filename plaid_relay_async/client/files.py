"""PDFs into files, as they arrive: whole or not at all, and for their owner's eyes alone."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaid_relay_async.models import PdfFile

if TYPE_CHECKING:
    import io
    from collections.abc import Callable

    from plaid_relay_async.codec import Endpoint
    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.errors import Hidden
    from plaid_relay_async.models import PdfResponse
    from plaid_relay_async.transport import Transport


class PartFile:
    """A file under way, beside the one that it will be.

    Whoever awaits one of its methods may be cancelled while a thread is at it, so a lock has them take turns.
    """

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path
        self._part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        self._lock = threading.Lock()
        self._file: io.BufferedWriter | None = None
        self._discarded = False
        self._trouble: OSError | None = None

    async def open(self) -> None:
        """Make the file.

        Raises:
            FileExistsError: there is one already under the name that it will have.
            OSError: it can't be made.
        """
        await self._in_turn(self._open)

    async def begin(self) -> None:
        """Forget what was written."""
        await self._in_turn(self._begin)

    async def write(self, piece: Hidden[bytes]) -> None:
        """Write a piece. What prevents it is raised by `publish`: it is no trouble with Plaid."""
        await self._in_turn(lambda: self._write(piece))

    async def publish(self) -> None:
        """Give the file its name.

        Raises:
            FileExistsError: another has got that name meanwhile.
            OSError: the file couldn't be written.
        """
        await self._in_turn(self._publish)

    async def discard(self) -> None:
        """Take away what isn't published."""
        await self._in_turn(self._discard)

    async def _in_turn(self, act: Callable[[], None]) -> None:
        def locked() -> None:
            with self._lock:
                act()

        # A cancelled thread goes on all the same; what it raises then is nobody's business.
        await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(locked)))

    def _open(self) -> None:
        if self._discarded:
            return
        if os.path.lexists(self._path):
            raise FileExistsError(f"{self._path} is there already")
        # Path.open takes no opener, and the file must be private from its first moment.
        self._file = open(self._part, "xb", opener=_private)  # noqa: SIM115  # closed by the others

    def _begin(self) -> None:
        self.size = 0
        self._attempt(lambda file: file.truncate(file.seek(0)))

    def _write(self, piece: Hidden[bytes]) -> None:
        self.size += len(piece.reveal())
        self._attempt(lambda file: file.write(piece.reveal()))

    def _attempt(self, act: Callable[[io.BufferedWriter], Any]) -> None:
        if self._file is None or self._trouble is not None:
            return
        try:
            act(self._file)
        except OSError as error:
            self._trouble = error

    def _publish(self) -> None:
        self._attempt(lambda file: file.close())
        if self._trouble is not None:
            raise self._trouble
        # A link, unlike a renaming, never takes the place of another file.
        os.link(self._part, self._path)

    def _discard(self) -> None:
        self._discarded = True
        if self._file is not None:
            self._attempt(lambda file: file.close())
            self._part.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


async def download(
    transport: Transport,
    endpoint: Endpoint[Any, PdfResponse],
    request: object,
    path: str | os.PathLike[str],
    *,
    timeout: float | None,  # noqa: ASYNC109  # a deadline over attempts, not around an await
    retry: RetryPolicy | None,
) -> PdfFile:
    """Make the call and have its PDF written to the path as it arrives."""
    whole = Path(path)
    part = PartFile(whole)
    try:
        await part.open()
        pdf = await transport.call(endpoint, request, timeout=timeout, retry=retry, into=part)
        await part.publish()
    finally:
        await part.discard()
    return PdfFile(whole, part.size, pdf.request_id)
