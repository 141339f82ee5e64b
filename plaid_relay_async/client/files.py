"""Save PDFs to files as they arrive: completely or not at all, and with mode 0600."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaid_relay_async.cancellation import shield_from_anyio
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.models import PdfFile
from plaid_relay_async.private_files import PartFile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plaid_relay_async.codec import Endpoint, RawResponse
    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import PdfResponse
    from plaid_relay_async.redaction import Hidden
    from plaid_relay_async.transport import Transport


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
