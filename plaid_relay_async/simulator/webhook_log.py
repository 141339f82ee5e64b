"""The webhooks that were sent, and the list of them, `/beta/webhook_events/list`.

See https://plaid.com/docs/api/webhooks/webhook-events/.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import uuid4

from attrs import define, field

from plaid_relay_async.simulator.api_errors import ApiError
from plaid_relay_async.simulator.simulated_time import SimulatedTime

PENDING, DELIVERED, FAILED = STATUSES = ("PENDING", "DELIVERED", "FAILED")

MAX_PAGE = 100
_RETENTION_SECONDS = 7 * 86_400.0
_MAX_WEBHOOKS = 10_000
# The list doesn't have them, because /transactions/sync is the way to read missed transactions.
_UNLISTED_TYPE = "TRANSACTIONS"
# The field of a listed webhook that each filter is for.
_FILTERS = {
    "webhook_types": "webhook_type",
    "webhook_codes": "webhook_code",
    "item_ids": "item_id",
    "delivery_statuses": "delivery_status",
}


@define(eq=False)
class SentWebhook:
    """A webhook, and the state of its delivery. Moments are in seconds of the simulator's clock.

    Attributes:
        number: its number; later webhooks have higher ones.
        message_id: its ID in the list.
        client_id: the client that registered the URL.
        url: the URL.
        payload: the content.
        item_id: the Item that it is about.
        request_id: the ID of the response to the request that fired it.
        sent_at: when it was sent.
        status: one of `STATUSES`.
        attempts: the number of attempts to deliver it.
        last_attempt_at: when the last attempt was made.
        http_status: the last status with which the receiver responded.
        error: why the last attempt failed, or why there was none.
        next_delay: how long after a failed attempt the next one is made, in seconds.
        removed: whether the log has removed it.
    """

    number: int
    message_id: str
    client_id: str
    url: str
    payload: Mapping[str, Any] = field(repr=False)
    item_id: str | None
    request_id: str | None
    sent_at: float
    status: str = PENDING
    attempts: int = 0
    last_attempt_at: float | None = None
    http_status: int | None = None
    error: str | None = None
    next_delay: float = 30.0
    removed: bool = False

    def to_event(self, time: SimulatedTime) -> dict[str, Any]:
        """Return it as Plaid lists it."""
        return {
            "webhook_message_id": self.message_id,
            "webhook_type": self.payload["webhook_type"],
            "webhook_code": self.payload["webhook_code"],
            "item_id": self.item_id,
            "sent_time": _format_time(time, self.sent_at),
            "payload": dict(self.payload),
            "destination_url": self.url,
            "delivery_status": self.status,
            "last_http_status_code": self.http_status,
            "attempt_count": self.attempts,
            "last_attempt_time": None
            if self.last_attempt_at is None
            else _format_time(time, self.last_attempt_at),
        }


class WebhookLog:
    """The webhooks of the last seven days, and no more than the last `size`.

    Args:
        time: the simulator's time.
        size: the maximum number of webhooks.

    Attributes:
        on_send: called with each new webhook.
        on_remove: called with each webhook that is removed.
    """

    def __init__(self, time: SimulatedTime, size: int = _MAX_WEBHOOKS) -> None:
        self._time = time
        self._size = size
        # A cursor is valid for one log, because another one has other webhooks.
        self._id = uuid4().hex
        self._last_number = 0
        self._webhooks: deque[SentWebhook] = deque()
        self.on_send: Callable[[SentWebhook], None] = _do_nothing
        self.on_remove: Callable[[SentWebhook], None] = _do_nothing

    def __iter__(self) -> Iterator[SentWebhook]:
        self._remove_old()
        return iter(tuple(self._webhooks))

    def send(
        self,
        client_id: str,
        url: str,
        payload: Mapping[str, Any],
        *,
        item_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        """Record a new webhook, which is then delivered.

        Args:
            client_id: the client that registered the URL, which finds the webhook in its list.
            url: the URL.
            payload: the content.
            item_id: the Item that it is about.
            request_id: the ID of the response to the request that fired it.
        """
        self._last_number += 1
        webhook = SentWebhook(
            number=self._last_number,
            message_id=str(uuid4()),
            client_id=client_id,
            url=url,
            payload=payload,
            item_id=item_id,
            request_id=request_id,
            sent_at=self._time(),
        )
        self._webhooks.append(webhook)
        self._remove_old()
        self.on_send(webhook)

    def _remove_old(self) -> None:
        oldest = self._time() - _RETENTION_SECONDS
        while self._webhooks and (len(self._webhooks) > self._size or self._webhooks[0].sent_at < oldest):
            webhook = self._webhooks.popleft()
            webhook.removed = True
            self.on_remove(webhook)

    def list_events(self, client_id: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of the response to a request whose fields have been checked."""
        count = request.get("count") or MAX_PAGE
        after, start = self._start_of_page(request)
        matches = (
            (webhook.number, event)
            for webhook in self
            if webhook.client_id == client_id and webhook.number > after and webhook.sent_at >= start
            if _matches(event := webhook.to_event(self._time), request)
        )
        page = list(islice(matches, count + 1))
        has_more = len(page) > count
        # After the last page, a cursor skips also what the filters have excluded.
        position = page[count - 1][0] if has_more else self._last_number
        return {
            "webhook_events": [event for _, event in page[:count]],
            "has_more": has_more,
            "next_cursor": self._to_cursor(position),
        }

    def _start_of_page(self, request: Mapping[str, Any]) -> tuple[int, float]:
        """Return the number after which and the moment from which webhooks are on the page."""
        if request.get("cursor") is not None:
            return self._read_cursor(request["cursor"]), float("-inf")
        if request.get("start_time") is None:
            return 0, float("-inf")
        now = self._time()
        age = self._time.to_unix(now) - datetime.fromisoformat(request["start_time"]).timestamp()
        # Plaid publishes that it must be within the last seven days. So the future is out of range, too.
        if not 0 <= age <= _RETENTION_SECONDS:
            raise ApiError("WEBHOOK_EVENTS_START_TIME_OUT_OF_RANGE")
        return 0, now - age

    def _to_cursor(self, number: int) -> str:
        return urlsafe_b64encode(json.dumps([self._id, self._time(), number]).encode()).decode()

    def _read_cursor(self, cursor: str) -> int:
        """Return the number in a cursor, which expires seven days after it was returned (our choice)."""
        try:
            log_id, created_at, number = json.loads(urlsafe_b64decode(cursor))
        except (ValueError, TypeError):  # not the form of a cursor
            log_id, created_at, number = "", 0.0, 0
        if log_id != self._id:
            raise ApiError("INVALID_FIELD", "cursor must be the next_cursor of an earlier response")
        if self._time() - created_at > _RETENTION_SECONDS:
            raise ApiError("WEBHOOK_EVENTS_CURSOR_EXPIRED")
        return int(number)


def _do_nothing(_: SentWebhook) -> None:
    pass


def _matches(event: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Return whether the list has a webhook: it matches one value of each filter that isn't empty."""
    if event["webhook_type"] == _UNLISTED_TYPE:
        return False
    return all(event[name] in request[filter_] for filter_, name in _FILTERS.items() if request.get(filter_))


def _format_time(time: SimulatedTime, moment: float) -> str:
    moment_utc = datetime.fromtimestamp(time.to_unix(moment), UTC)
    return moment_utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
