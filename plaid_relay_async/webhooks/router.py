"""The router: which function handles a webhook that was received."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar, overload

from attrs import field, frozen

from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.models.webhooks import WEBHOOK_RECORDS, UnknownWebhook, WebhookEvent

if TYPE_CHECKING:
    from datetime import datetime


E = TypeVar("E", bound=WebhookEvent)
E_co = TypeVar("E_co", bound=WebhookEvent, covariant=True)

_EventKey: TypeAlias = "type[WebhookEvent] | tuple[str, str]"
_KEY_BY_RECORD: Final = {record: key for key, record in WEBHOOK_RECORDS.items()}


class RetrievedPair(Protocol):
    """The pair of a webhook, as the journal knows it: a `PairRecord` of `plaid_relay_async.journal`.

    Attributes:
        pair_id: the pair ID, which was in the webhook's URL.
        run: the run that created, or tried to create, the pair's token.
        secondary_client_id: the partner.
        outcome: the outcome of the creation, as in the journal's `Record`.
        retrieved_at: when the partner is first known to have retrieved the report.
    """

    @property
    def pair_id(self) -> str:
        """The pair ID, which was in the webhook's URL."""
        ...

    @property
    def run(self) -> str:
        """The run that created, or tried to create, the pair's token."""
        ...

    @property
    def secondary_client_id(self) -> str:
        """The partner."""
        ...

    @property
    def outcome(self) -> str:
        """The outcome of the creation, as in the journal's `Record`."""
        ...

    @property
    def retrieved_at(self) -> datetime:
        """When the partner is first known to have retrieved the report."""
        ...


class RetrievalJournal(Protocol):
    """What a receiver needs of a journal."""

    async def record_retrieval(self, pair_id: str, *, retrieved_at: datetime) -> RetrievedPair | None:
        """Record that the partner of a pair has retrieved the report; return `None` for an unknown pair."""
        ...


@frozen(kw_only=True)
class Delivery(Generic[E_co]):
    """A webhook that is delivered to its handler, once or repeatedly.

    Attributes:
        event: the event.
        body: the body. An event of another form than Plaid documents may have parts that only the body has.
        idempotency_key: the ID of the webhook in the inbox, which is the same for each attempt.
        attempt: 1 if the handler runs for the first time.
        sent_at: when Plaid signed or first sent the webhook, in seconds of Unix time.
        received_at: when it was stored, in seconds of Unix time.
        pair_id: the pair ID in its URL, or `None`.
        pair: that pair; `None` if there is none, or the receiver has no journal, or the journal doesn't know
            the pair.
    """

    event: E_co = field(repr=lambda event: type(event).__name__)
    body: bytes = field(repr=False)
    idempotency_key: str
    attempt: int
    sent_at: float
    received_at: float
    pair_id: str | None = field(default=None, repr=False)
    pair: RetrievedPair | None = field(default=None, repr=False)


Handler: TypeAlias = Callable[[Delivery[E]], Awaitable[object]]
"""An async function that handles a delivery."""


class WebhookRouter:
    """Maps webhooks to handlers, by their record or by their type and code.

    .. code-block:: python

        router = WebhookRouter()

        @router.on(AssetsProductReadyWebhook)
        async def read_report(delivery: Delivery[AssetsProductReadyWebhook]) -> None: ...

        @router.on("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE")
        async def sync(delivery: Delivery[WebhookEvent]) -> None: ...

        @router.default
        async def handle_any_other(delivery: Delivery[WebhookEvent]) -> None: ...
    """

    def __init__(self) -> None:
        self._handlers: dict[_EventKey, Handler[Any]] = {}
        # The keys that were registered as a record: their handlers accept no other record.
        self._exact: set[_EventKey] = set()
        self._default: Handler[Any] | None = None

    @overload
    def on(self, record: type[E], /) -> Callable[[Handler[E]], Handler[E]]: ...

    @overload
    def on(
        self, webhook_type: str, webhook_code: str, /
    ) -> Callable[[Handler[WebhookEvent]], Handler[WebhookEvent]]: ...

    def on(self, event: type[E] | str, webhook_code: str = "", /) -> Callable[[Handler[Any]], Handler[Any]]:
        """Return a decorator that registers an async function as the handler of an event.

        Args:
            event: the record of the event, or its type. The handler of `UnknownWebhook` handles all webhooks
                with that record, unless there is one of their type and code.
            webhook_code: its code, if `event` is a type.

        Raises:
            ConfigurationError: the event has a handler already, the handler isn't an async function, or there
                is no such event.
        """
        key = _read_key(event, webhook_code)

        def register(handler: Handler[Any]) -> Handler[Any]:
            _check_handler(handler)
            if key in self._handlers:
                raise ConfigurationError(f"there is a handler of {_describe(key)} already")
            self._handlers[key] = handler
            if not isinstance(event, str):
                self._exact.add(key)
            return handler

        return register

    def default(self, handler: Handler[WebhookEvent]) -> Handler[WebhookEvent]:
        """Register an async function as the handler of all events that have none; use it as a decorator.

        Raises:
            ConfigurationError: there is a default already, or the handler isn't an async function.
        """
        _check_handler(handler)
        if self._default is not None:
            raise ConfigurationError("there is a default handler already")
        self._default = handler
        return handler

    def find_handler(self, event: WebhookEvent) -> Handler[Any] | None:
        """Return the handler of an event, or `None`."""
        key = (event.webhook_type or "", event.webhook_code or "")
        # An event that isn't as documented is an `UnknownWebhook`, whatever its type and code are.
        acceptable = key not in self._exact or isinstance(event, WEBHOOK_RECORDS[key])
        handler = self._handlers.get(key) if acceptable else None
        return handler or self._handlers.get(type(event)) or self._default


def _read_key(event: object, webhook_code: str) -> _EventKey:
    if isinstance(event, str) and webhook_code:
        return (event, webhook_code)
    if event is UnknownWebhook:
        return UnknownWebhook
    if isinstance(event, type) and event in _KEY_BY_RECORD:
        return _KEY_BY_RECORD[event]
    raise ConfigurationError("router.on() needs the record of a webhook, or a type and a code")


def _check_handler(handler: object) -> None:
    if not (
        inspect.iscoroutinefunction(handler)
        or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004  # not whether it exists
    ):
        raise ConfigurationError("the handler of a webhook must be an async function")


def _describe(key: _EventKey) -> str:
    return key.__name__ if isinstance(key, type) else "/".join(key)
