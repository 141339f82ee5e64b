"""Receives webhooks for the command `webhooks listen`, and prints each one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from plaid_relay_async.cli.logs import JSONFormatter, LogHandler, print_message, writes_json
from plaid_relay_async.cli.messages import ExitStatus, UsageError
from plaid_relay_async.cli.serving import handling_log
from plaid_relay_async.cli.webhook_output import LineWriter, format_time, to_line
from plaid_relay_async.hosts import bracketed
from plaid_relay_async.webhooks import MemoryInbox, WebhookReceiver, WebhookRouter, WebhookState
from plaid_relay_async.webhooks.aiohttp_handler import aiohttp_handler
from plaid_relay_async.webhooks.processing import describe_error
from plaid_relay_async.webhooks.verification import TOLERANCE

if TYPE_CHECKING:
    import io
    from collections.abc import AsyncIterator

    from plaid_relay_async.cli.signals import Signals
    from plaid_relay_async.client import RelayClient
    from plaid_relay_async.inbox import SQLInbox
    from plaid_relay_async.journal import Journal
    from plaid_relay_async.webhooks import Delivery, WebhookEvent

_SHUTDOWN_SECONDS: Final = 10.0  # for requests in flight; a receiver responds within 8 seconds
_DRAIN_SECONDS: Final = 2.0  # for a line that is being written
# Only the journal can fail, or the output, which ends the command. So no webhook becomes a dead letter.
_MAX_ATTEMPTS: Final = 1_000_000
_MAX_BACKOFF: Final = 60.0


class _Printer:
    """The handler of all webhooks: prints each one as a line.

    After an error it holds the webhook until it is cancelled, so that the next `listen` prints it first.

    Attributes:
        error: the error because of which nothing more is printed, or `None`.
    """

    def __init__(self, file: io.FileIO, stopped: asyncio.Event, *, has_journal: bool) -> None:
        self.error: OSError | None = None
        self._writer = LineWriter(file)
        self._stopped = stopped
        self._has_journal = has_journal

    async def __call__(self, delivery: Delivery[WebhookEvent]) -> None:
        try:
            await self._writer.write(to_line(self._fields(delivery), delivery.body))
        except OSError as error:
            self.error = error
            self._stopped.set()
            await asyncio.Event().wait()

    def _fields(self, delivery: Delivery[WebhookEvent]) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "id": delivery.idempotency_key,
            "webhook_type": delivery.event.webhook_type,
            "webhook_code": delivery.event.webhook_code,
            "pair": delivery.pair_id,
        }
        if self._has_journal:
            pair = delivery.pair
            fields["run"] = None if pair is None else pair.run
            fields["secondary_client_id"] = None if pair is None else pair.secondary_client_id
        return fields | {
            "sent_at": format_time(delivery.sent_at),
            "received_at": format_time(delivery.received_at),
            "stale": delivery.received_at - delivery.sent_at > TOLERANCE,
        }


async def listen(
    client: RelayClient,
    inbox: SQLInbox | None,
    journal: Journal | None,
    address: tuple[str, int],
    *,
    file: io.FileIO,
    signals: Signals,
) -> ExitStatus:
    """Receive webhooks and print them, until the first signal or until the output can't be written.

    Args:
        client: looks up the keys; it is not open yet.
        inbox: keeps the webhooks, and is not open yet; without it, they are kept in memory.
        journal: records retrievals, and is not open yet.
        address: the host and the port to listen on.
        file: standard output.
        signals: the signals of the process.

    Raises:
        UsageError: the address isn't available.
        OSError: the output can't be written.
    """
    stopped = asyncio.Event()
    printer = _Printer(file, stopped, has_journal=journal is not None)
    async with contextlib.AsyncExitStack() as stack:
        for resource in (client, inbox, journal):
            if resource is not None:
                await stack.enter_async_context(resource)
        memory = MemoryInbox()
        router = WebhookRouter()
        router.default(printer)
        receiver = WebhookReceiver(
            client.webhooks,
            inbox or memory,
            router,
            journal=journal,
            concurrency=1,
            max_attempts=_MAX_ATTEMPTS,
            max_backoff=_MAX_BACKOFF,
            handler_timeout=None,
            drain=_DRAIN_SECONDS,
        )
        with _log_to_stderr():
            async with receiver, _serving(receiver, *address) as url:
                print_message(f"listening on {url}")
                with signals.handled_by(stopped.set):
                    await stopped.wait()
        lost = [webhook async for webhook in memory.webhooks(WebhookState.PENDING)]
    if lost:
        print_message(
            f"plaid-relay: webhooks that were received and not printed: {len(lost)}; use --store",
            level=logging.WARNING,
        )
    if printer.error is not None:
        raise printer.error
    return ExitStatus.FAILED if lost else ExitStatus.DONE


@contextlib.asynccontextmanager
async def _serving(receiver: WebhookReceiver, host: str, port: int) -> AsyncIterator[str]:
    """Pass the webhooks that arrive on any path to a receiver, and yield the URL."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", aiohttp_handler(receiver))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, UnicodeError) as error:
            raise UsageError(f"can't listen: {getattr(error, 'strerror', None) or error}") from None
        yield f"http://{bracketed(host)}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class _ShortFormatter(logging.Formatter):
    """Formats an exception without its traceback."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  # the name is that of `logging`
        return describe_error(ei[1])


def _log_to_stderr() -> contextlib.AbstractContextManager[None]:
    """Print what the receiver logs, such as the reason for which a request was refused."""
    handler = LogHandler()
    handler.setFormatter(JSONFormatter() if writes_json() else _ShortFormatter())
    return handling_log(logging.getLogger("plaid_relay_async.webhooks"), handler)
