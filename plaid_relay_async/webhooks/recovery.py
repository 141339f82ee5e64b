"""Recovery: webhooks that Plaid has sent, and that no receiver has stored, are added to the inbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from plaid_relay_async import codec, models
from plaid_relay_async.errors import CursorExpiredError
from plaid_relay_async.webhooks.inbox import IncomingWebhook, read_pair_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import TypeAlias

    from plaid_relay_async.webhooks.inbox import Inbox

    ListPages: TypeAlias = Callable[[str | None], AsyncIterator[models.WebhookEventsListResponse]]


@frozen
class Recovery:
    """The result of a recovery.

    Attributes:
        read: how many webhooks were read from Plaid's list.
        added: how many of them were new to the inbox.
        cursor: the position in Plaid's list up to which the inbox has all webhooks; the inbox has stored it.
            `None` if the list was empty and had no position.
        cursor_expired: whether the position of the previous recovery was older than 7 days. Webhooks that
            were sent after it and more than 7 days ago can't be recovered any more.
    """

    read: int
    added: int
    cursor: str | None
    cursor_expired: bool


async def recover_webhooks(list_pages: ListPages, inbox: Inbox, url_prefix: str) -> Recovery:
    """Add the webhooks of Plaid's list to an inbox, from the position that it has stored.

    Args:
        list_pages: returns the pages from a cursor on, or all without one.
        inbox: the inbox.
        url_prefix: the webhooks that were sent to other URLs are left out.
    """
    cursor = await inbox.load_cursor()
    try:
        return await _recover_from(cursor, list_pages, inbox, url_prefix)
    except CursorExpiredError:
        if cursor is None:
            raise
    return await _recover_from(None, list_pages, inbox, url_prefix, cursor_expired=True)


async def _recover_from(
    cursor: str | None, list_pages: ListPages, inbox: Inbox, url_prefix: str, *, cursor_expired: bool = False
) -> Recovery:
    read = added = 0
    async for page in list_pages(cursor):
        for webhook in page.webhook_events:
            read += 1
            if webhook.destination_url.startswith(url_prefix):
                added += await inbox.add(to_incoming(webhook))
        # If the process ends before this, the page is read again, and the inbox has its webhooks already.
        if page.next_cursor:
            cursor = page.next_cursor
            await inbox.store_cursor(cursor)
    return Recovery(read, added, cursor, cursor_expired)


def to_incoming(webhook: models.SentWebhook) -> IncomingWebhook:
    """Return a webhook of Plaid's list as one to store; its body has each number exactly as Plaid sent it."""
    return IncomingWebhook(
        body=codec.to_json(models.UnknownWebhook(additional_properties=webhook.payload)),
        sent_at=webhook.sent_time.timestamp(),
        pair=read_pair_id(webhook.destination_url),
        message_id=webhook.webhook_message_id,
    )
