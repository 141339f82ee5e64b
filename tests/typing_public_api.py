"""The types that a type checker infers for the public API; this file is checked and never run."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Never, assert_type

from plaid_relay_async import (
    AssetReport,
    AssetReportGetResponse,
    AttemptEnd,
    Batch,
    BatchResult,
    CallEnd,
    Created,
    CreationResult,
    Credentials,
    Failed,
    Fetched,
    Outcome,
    OutcomeUnknownError,
    PdfResponse,
    PlaidRelayError,
    Refreshed,
    RelayClient,
    RelayCreateRequest,
    RelayCreateResponse,
    RelayGetRequest,
    RelayRefreshResponse,
    RelayRemoveResponse,
    Removed,
    SentWebhook,
    Telemetry,
    Unknown,
    WebhookEventsListResponse,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.limits import PLAID_SANDBOX, InProcessLimiter, RateLimit, RedisLimiter
from plaid_relay_async.webhooks import (
    AssetsErrorWebhook,
    AssetsProductReadyWebhook,
    Delivery,
    ItemErrorWebhook,
    ItemLoginRepairedWebhook,
    MemoryInbox,
    NewAccountsAvailableWebhook,
    PendingDisconnectWebhook,
    PendingExpirationWebhook,
    Recovery,
    UnknownWebhook,
    UserAccountRevokedWebhook,
    UserPermissionRevokedWebhook,
    WebhookEvent,
    WebhookReceiver,
    WebhookRouter,
    WebhookUpdateAcknowledgedWebhook,
    parse,
)
from plaid_relay_async.webhooks.aiohttp_handler import aiohttp_handler
from plaid_relay_async.webhooks.asgi import asgi_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web
    from opentelemetry.trace import TracerProvider
    from redis.asyncio import Redis
    from starlette.applications import Starlette

    from plaid_relay_async.batch import CallContext


class Limiter:
    async def acquire(self, endpoint: str) -> None: ...


class CustomRecorder:
    recorded_outcome = None
    earlier_in_doubt_error = None
    journalled = True

    def request_to_send(self, request: RelayCreateRequest) -> RelayCreateRequest:
        return request

    async def record_intent(self) -> None: ...
    async def record_outcome(self, outcome: Outcome) -> None: ...
    def release(self) -> None: ...


class CustomJournal:
    async def acquire_recorder(self, request: RelayCreateRequest, context: CallContext) -> CustomRecorder:
        return CustomRecorder()


async def read_credentials() -> Credentials:
    return Credentials("a", "b")


def clients_with_limiters(redis: Redis) -> tuple[RelayClient, ...]:
    limits = {**PLAID_SANDBOX, "/credit/relay/create": RateLimit(100)}
    limiters = (
        InProcessLimiter(limits),
        RedisLimiter(limits, redis),
        RedisLimiter(limits, "redis://h", slack=1),
    )
    return tuple(RelayClient(rate_limiter=limiter) for limiter in limiters)


def client_with_telemetry(provider: TracerProvider) -> RelayClient:
    attempts: list[AttemptEnd] = []
    calls: dict[str, str] = {}

    def store(end: CallEnd) -> None:
        assert_type(end.status, int | None)
        calls[end.call_id] = end.outcome

    telemetry = Telemetry(tracer_provider=provider, propagate=True)
    return RelayClient(on_attempt=attempts.append, on_call_end=store, telemetry=telemetry)


async def lender_api() -> None:
    async with RelayClient(read_credentials, rate_limiter=Limiter()) as client:
        assert_type(client, RelayClient)
        created = await client.relay.create(["t"], "p", timeout=3)
        assert_type(created, RelayCreateResponse)
        assert_type(created.relay_token, str)
        extra: dict[str, bool] = {"x": True}
        assert_type(await client.relay.create(["t"], "p", extra=extra), RelayCreateResponse)
        assert_type(await client.relay.create(["t"], "p", journal=CustomJournal()), RelayCreateResponse)
        assert_type(await client.relay.remove("t"), RelayRemoveResponse)
        assert_type(await client.relay.get_pdf("t"), PdfResponse)
        shared = await client.relay.get("t")
        assert_type(shared.report.items[0].accounts[0].transactions[0].amount, Decimal)

        requests = RelayCreateRequest.fan_out(["t"], ["p"])
        result = await client.relay.create_many(requests, journal=CustomJournal())
        result = await client.relay.create_many(requests, journal=Journal("relay.db"))
        assert_type(result, CreationResult)
        assert_type(result.succeeded, list[Created])
        assert_type(result.created, list[Created])
        assert_type(result.succeeded[0].request, RelayCreateRequest)
        assert_type(result.unknown, list[Unknown])
        async with client.relay.create_many(requests) as outcomes:
            assert_type(outcomes, Batch[Outcome, CreationResult])
            assert_type(outcomes.result, CreationResult)
            async for outcome in outcomes:
                assert_type(outcome, Created | Failed | Unknown)
                assert_type(describe(outcome), str)


async def partner_api(client: RelayClient) -> None:
    async with client.relay.get_many(["t", RelayGetRequest("u")]) as reports:
        async for outcome in reports:
            assert_type(outcome, Fetched[AssetReportGetResponse] | Failed)
            match outcome:
                case Fetched(response=response):
                    assert_type(response.report, AssetReport)
                case Failed(error=error):
                    assert_type(error, PlaidRelayError)
    pdfs = await client.relay.get_pdf_many(iter(["t"]), concurrency=3)
    assert_type(pdfs.unknown, list[Never])
    assert_type(pdfs.succeeded[0].response, PdfResponse)
    refreshed = await client.relay.refresh_many(async_tokens())
    assert_type(refreshed.succeeded, list[Refreshed])
    assert_type(refreshed.unknown, list[Unknown])
    client.relay.refresh_many(["t"], on_outcome=on_outcome)  # type: ignore[arg-type]  # for another operation
    client.relay.refresh_many(["t"], concurency=1)  # type: ignore[call-arg]  # misspelled
    assert_type(refreshed.succeeded[0].response, RelayRefreshResponse)
    removed = await client.relay.remove_many(["t"], on_outcome=on_outcome)
    assert_type(removed, BatchResult[Removed, Unknown])
    _ = removed.created  # type: ignore[attr-defined]  # only the result of `create_many` has it
    assert_type(removed.succeeded[0].response, RelayRemoveResponse)


async def async_tokens() -> AsyncIterator[str]:
    yield "t"


def on_outcome(outcome: Removed | Failed | Unknown) -> None: ...


def describe(outcome: Outcome) -> str:
    match outcome:
        case Created(relay_token=token):
            return assert_type(token, str)
        case Failed(error=error):
            return str(assert_type(error, PlaidRelayError))
        case Unknown(error=unknown_error):
            return str(assert_type(unknown_error, OutcomeUnknownError))


async def sent_webhooks(client: RelayClient, inbox: MemoryInbox) -> Recovery:
    sent = client.webhook_events.list(
        item_ids=["item"], delivery_statuses={"FAILED"}, start_time=datetime.now(UTC)
    )
    async for webhook in sent:
        assert_type(webhook, SentWebhook)
        assert_type(webhook.payload, dict[str, Any])
    async for page in sent.pages():
        assert_type(page.webhook_events, tuple[SentWebhook, ...])
    assert_type(await sent, WebhookEventsListResponse)
    assert_type(sent.cursor, str | None)
    return assert_type(await client.webhooks.recover(inbox), Recovery)


def webhooks(body: bytes) -> str:
    event = parse(body)
    assert_type(event, WebhookEvent)
    return describe_webhook(event)


def describe_webhook(event: WebhookEvent) -> str:
    """Return a text in each case: a type checker knows that there is no other."""
    match event:
        case AssetsProductReadyWebhook(asset_report_id=report, report_type=version):
            assert_type(version, str | None)
            return assert_type(report, str)
        case AssetsErrorWebhook(error=error) | ItemErrorWebhook(error=error):
            return "" if error is None else assert_type(error.error_code, str)
        case ItemLoginRepairedWebhook() | NewAccountsAvailableWebhook() | UserPermissionRevokedWebhook():
            return assert_type(event.item_id, str)
        case (
            UserAccountRevokedWebhook(account_id=text)
            | PendingDisconnectWebhook(reason=text)
            | WebhookUpdateAcknowledgedWebhook(new_webhook_url=text)
        ):
            return assert_type(text, str)
        case PendingExpirationWebhook(consent_expiration_time=time):
            return str(assert_type(time, datetime))
        case UnknownWebhook(webhook_type=kind):
            return str(assert_type(kind, str | None))


def incomplete_match(event: WebhookEvent) -> str:  # type: ignore[return]  # it ignores all other events
    match event:
        case UnknownWebhook():
            return ""


router = WebhookRouter()


@router.on(AssetsProductReadyWebhook)
async def on_ready(delivery: Delivery[AssetsProductReadyWebhook]) -> None:
    assert_type(delivery.event, AssetsProductReadyWebhook)
    if delivery.pair is not None:
        assert_type(delivery.pair.secondary_client_id, str)


@router.on(ItemErrorWebhook)
@router.on("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE")
@router.default
async def on_any(delivery: Delivery[WebhookEvent]) -> str:
    return describe_webhook(delivery.event)


@router.on(AssetsErrorWebhook)  # type: ignore[arg-type]  # the handler is for another event
async def on_wrong_event(delivery: Delivery[AssetsProductReadyWebhook]) -> None: ...


@router.on(AssetsErrorWebhook)  # type: ignore[arg-type]  # it isn't async
def on_event(delivery: Delivery[AssetsErrorWebhook]) -> None: ...


async def receive(client: RelayClient, app: web.Application, outer: Starlette) -> None:
    async with WebhookReceiver(client.webhooks, MemoryInbox(), router) as receiver:
        assert_type(await receiver.receive(b"", {"a": "b"}, "/"), bool)
        app.router.add_route("*", "/plaid/{path:.*}", aiohttp_handler(receiver))
        outer.mount("/plaid", asgi_app(receiver, client))
