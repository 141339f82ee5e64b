"""The receiver: verifies a webhook, stores it in an inbox, and responds; its handler runs afterwards.

It doesn't depend on a web framework. `aiohttp_handler` and `asgi` connect it to servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from attrs import field, frozen

from plaid_relay_async.config import check_count, check_seconds
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.redaction import Hidden, strip_traceback
from plaid_relay_async.webhooks.errors import (
    NotStoredReason,
    StaleWebhookError,
    WebhookError,
    WebhookKeyLookupError,
    WebhookNotStoredError,
    WebhookRefusedError,
)
from plaid_relay_async.webhooks.inbox import RETRY_SECONDS, IncomingWebhook, read_pair_id
from plaid_relay_async.webhooks.processing import ProcessingSettings, WebhookProcessor, describe_error
from plaid_relay_async.webhooks.token import HeaderPairs, header_pairs
from plaid_relay_async.webhooks.verification import check_body

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self, TypeAlias

    from plaid_relay_async.webhooks.inbox import Inbox
    from plaid_relay_async.webhooks.router import RetrievalJournal, WebhookRouter
    from plaid_relay_async.webhooks.verified import VerifiedWebhook

    Headers: TypeAlias = Mapping[str, str] | HeaderPairs
    HeaderList: TypeAlias = list[tuple[str, str]]
    ReadChunk: TypeAlias = Callable[[], Awaitable[bytes]]

_log = logging.getLogger("plaid_relay_async.webhooks")

_RETRY_AFTER: Final = "10"  # seconds, in a response with status 429; Plaid waits for that time


class Verifier(Protocol):
    """Verifies webhooks: `client.webhooks`."""

    def verify(self, body: bytes, headers: Headers) -> Awaitable[VerifiedWebhook]:
        """Verify a webhook, and return it."""
        ...


@frozen
class ReceiverResponse:
    """The response to a request. Its body is empty.

    Attributes:
        status: the HTTP status.
        headers: its headers, with names in lower case.
        close: whether the connection must be closed, because the rest of the request isn't read.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict)
    close: bool = False


class WebhookReceiver:
    """Receives webhooks: verifies and stores each one before it is acknowledged, and runs its handler later.

    Inside `async with receiver:` the handlers of stored webhooks run, whichever process has stored them.
    `receive` and `respond` need no `async with`. So a web process can leave the handlers to other processes
    with the same inbox: its receiver has no router, or isn't used with `async with`. The client and the inbox
    must be open.

    A handler runs at least once. If it fails, it runs again, after a random part of an exponential backoff,
    until it has failed `max_attempts` times. Then the webhook is a dead letter.

    Args:
        webhooks: verifies webhooks: `client.webhooks`.
        inbox: stores them.
        router: finds their handlers; without one, the receiver runs no handlers.
        journal: if the URL of a webhook has a pair ID, the journal records, before the handler runs, that
            the partner has retrieved the report.
        accept_stale: whether to store a webhook that is authentic and older than the tolerance. It may be
            Plaid's retry, and if it is a replay, a durable inbox has it. The default is whether the inbox is
            durable. Those older than Plaid's retries, 24 hours, are always refused.
        max_body_bytes: the longest body.
        max_pending: the maximum number of verified webhooks that wait for the inbox concurrently.
        time_limit: the seconds for reading, verifying and storing a webhook. Plaid waits ten.
        on_refused: called with the reason of each webhook that isn't stored, as a string: for metrics.
        concurrency: the maximum number of handlers that run concurrently.
        max_attempts: the number of attempts after which a webhook is a dead letter.
        backoff: the first backoff after a failure, in seconds. It doubles each time.
        max_backoff: the longest backoff, in seconds.
        handler_timeout: the seconds after which a handler is cancelled, and has failed; `None` is no limit.
        drain: the seconds that running handlers have to end at the end of `async with`. Then
            they are cancelled, and run again later.

    Raises:
        ConfigurationError: a setting is invalid.
    """

    def __init__(
        self,
        webhooks: Verifier,
        inbox: Inbox,
        router: WebhookRouter | None = None,
        *,
        journal: RetrievalJournal | None = None,
        accept_stale: bool | None = None,
        max_body_bytes: int = 262_144,
        max_pending: int = 100,
        time_limit: float = 8.0,
        on_refused: Callable[[str], object] | None = None,
        concurrency: int = 10,
        max_attempts: int = 12,
        backoff: float = 2.0,
        max_backoff: float = 3600.0,
        handler_timeout: float | None = 300.0,
        drain: float = 10.0,
    ) -> None:
        check_count("max_body_bytes", max_body_bytes)
        check_count("max_pending", max_pending)
        check_seconds("time_limit", time_limit)
        if accept_stale and not inbox.durable:
            # It would accept a replay after a restart.
            raise ConfigurationError("accept_stale needs a durable inbox")
        self._webhooks = webhooks
        self._inbox = inbox
        self._accept_stale = inbox.durable if accept_stale is None else accept_stale
        self._max_body_bytes = max_body_bytes
        self._max_pending = max_pending
        self._time_limit = time_limit
        self._on_refused = on_refused
        self._pending = 0
        self._entered = self._closing = False
        settings = ProcessingSettings(
            concurrency=concurrency,
            max_attempts=max_attempts,
            backoff=backoff,
            max_backoff=max_backoff,
            handler_timeout=handler_timeout,
            drain=drain,
        )
        self._processor = None if router is None else WebhookProcessor(inbox, router, journal, settings)

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ConfigurationError("a receiver can be entered only once")
        self._entered = True
        if self._processor is not None:
            self._processor.start()
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._closing = True
        if self._processor is not None:
            await self._processor.close()

    @strip_traceback
    def receive(self, body: bytes, headers: Headers, path: str) -> Awaitable[bool]:
        """Verify a webhook and store it.

        Respond with status 200 if it returns, and with the `response_status` of the error otherwise, with an
        empty body. The reason of an error is logged.

        Args:
            body: the body of the request, as received.
            headers: the headers of the request: a mapping such as those of aiohttp, Starlette and Django, or
                pairs of a name and a value.
            path: the path of the request, whose last segment may be a pair ID.

        Returns:
            True if the webhook is new. Plaid may deliver it repeatedly.

        Raises:
            WebhookRefusedError: it isn't authentic.
            StaleWebhookError: it is authentic, and too old.
            WebhookKeyLookupError: its key couldn't be looked up.
            WebhookNotStoredError: it isn't stored, for the `reason`.
            RawBodyRequiredError: the body isn't bytes.
            InvalidHeadersError: the headers are neither a mapping of strings nor pairs of strings or bytes.
        """
        check_body(body)
        pairs = Hidden(header_pairs(headers))
        with self._reporting():
            _check_content_type(pairs)
            self._check_length(len(body))
        deadline = asyncio.get_running_loop().time() + self._time_limit
        return self._receive(Hidden(body), pairs, Hidden(path), deadline)

    async def respond(
        self, method: str, path: str, headers: HeaderPairs, read_chunk: ReadChunk
    ) -> ReceiverResponse:
        """Read a request, and return the response to it; for adapters to web servers.

        Args:
            method: the method of the request.
            path: its path.
            headers: its headers, as pairs of a name and a value.
            read_chunk: returns the next part of the body; empty bytes are its end. It raises
                `WebhookNotStoredError` if the connection is lost.
        """
        deadline = asyncio.get_running_loop().time() + self._time_limit
        pairs = Hidden(header_pairs(headers))
        try:
            with self._reporting():
                if method != "POST":
                    raise WebhookNotStoredError.of(NotStoredReason.WRONG_METHOD)
                _check_content_type(pairs)
                body = await self._read_body(read_chunk, deadline)
            await self._receive(body, pairs, Hidden(path), deadline)
        except WebhookError as error:
            return _to_response(error)
        return ReceiverResponse(200)

    async def _read_body(self, read_chunk: ReadChunk, deadline: float) -> Hidden[bytes]:
        """Read the body, and stop when it exceeds `max_body_bytes`."""
        body = Hidden(bytearray())
        try:
            async with asyncio.timeout_at(deadline):
                while chunk := await read_chunk():
                    body.reveal().extend(chunk)
                    self._check_length(len(body.reveal()))
        except TimeoutError:
            raise WebhookNotStoredError.of(NotStoredReason.BODY_TOO_SLOW) from None
        return Hidden(bytes(body.reveal()))

    def _check_length(self, length: int) -> None:
        if length > self._max_body_bytes:
            raise WebhookNotStoredError.of(NotStoredReason.BODY_TOO_LARGE)

    async def _receive(
        self, body: Hidden[bytes], headers: Hidden[HeaderList], path: Hidden[str], deadline: float
    ) -> bool:
        with self._reporting():
            if self._closing:
                raise WebhookNotStoredError.of(NotStoredReason.CLOSING)
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._store(await self._verify(body, headers), path)
            except TimeoutError:
                raise WebhookNotStoredError.of(NotStoredReason.TOO_SLOW) from None

    async def _verify(self, body: Hidden[bytes], headers: Hidden[HeaderList]) -> VerifiedWebhook:
        try:
            return await self._webhooks.verify(body.reveal(), headers.reveal())
        except StaleWebhookError as error:
            # Plaid's retries aren't older, and the inbox might not recognize an older webhook as a replay.
            if self._accept_stale and error.age <= RETRY_SECONDS:
                return error.webhook
            raise

    async def _store(self, webhook: VerifiedWebhook, path: Hidden[str]) -> bool:
        """Store a webhook, and return whether it is new."""
        # Only verified webhooks are counted, so that forged ones can't take the place of Plaid's.
        if self._pending >= self._max_pending:
            raise WebhookNotStoredError.of(NotStoredReason.TOO_MANY)
        self._pending += 1
        try:
            pair = read_pair_id(path.reveal())
            return await self._inbox.add(IncomingWebhook(webhook.body, float(webhook.issued_at), pair))
        except Exception as error:
            raise WebhookNotStoredError.of(NotStoredReason.INBOX_FAILED) from error
        finally:
            self._pending -= 1

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Log the reason of an error, and pass it to the callback. The response doesn't have it."""
        try:
            yield
        except (
            WebhookRefusedError,
            StaleWebhookError,
            WebhookKeyLookupError,
            WebhookNotStoredError,
        ) as error:
            cause = "" if error.__cause__ is None else f" ({describe_error(error.__cause__)})"
            _log.log(_level_of(error), "a webhook wasn't stored: %s%s", error.reason, cause)
            if self._on_refused is not None:
                try:
                    self._on_refused(str(error.reason))
                except Exception as failure:  # noqa: BLE001  # a metric must not change the response
                    # Only its class: its traceback has the refusal and its cause, which may quote a server.
                    _log.error("on_refused raised %s", type(failure).__name__)
            raise


def _check_content_type(headers: Hidden[HeaderList]) -> None:
    """Check that the Content-Type is that of JSON. It may be missing: the signature is what counts."""
    types = [value for name, value in headers.reveal() if name == "content-type"]
    if any(each.partition(";")[0].strip().lower() != "application/json" for each in types):
        raise WebhookNotStoredError.of(NotStoredReason.WRONG_CONTENT_TYPE)


def _level_of(error: WebhookError) -> int:
    """Return INFO for requests such as those of scanners and browsers, which aren't webhooks."""
    unrelated = isinstance(error, WebhookNotStoredError) and error.response_status not in {429, 503}
    return logging.INFO if unrelated else logging.WARNING


def _to_response(error: WebhookError) -> ReceiverResponse:
    reason = error.reason if isinstance(error, WebhookNotStoredError) else None
    headers = {}
    if reason is NotStoredReason.WRONG_METHOD:
        headers["allow"] = "POST"
    if reason is NotStoredReason.TOO_MANY:
        headers["retry-after"] = _RETRY_AFTER
    unread = reason in {NotStoredReason.BODY_TOO_LARGE, NotStoredReason.BODY_TOO_SLOW}
    return ReceiverResponse(error.response_status, headers, close=unread)
