"""Helpers for the tests of inboxes."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing, asynccontextmanager

from attrs import define, field
from journal_support import KEY, execute
from sqlalchemy import text

from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.webhooks import IncomingWebhook, MemoryInbox

PAIR = "0123456789abcdef" * 2


def incoming(content="a", sent_at=1_000.0, *, pair=None, message_id=None):
    body = json.dumps({"webhook_type": "X", "content": content}).encode()
    return IncomingWebhook(body, sent_at, pair, message_id)


def about_report(report_id, code="PRODUCT_READY"):
    payload = {"webhook_type": "ASSETS", "webhook_code": code, "asset_report_id": report_id}
    return IncomingWebhook(json.dumps(payload).encode(), 1_000.0)


@define
class ShiftedClock:
    """A clock that is ahead of the machine's.

    Attributes:
        ahead: by how many seconds.
    """

    ahead: float = 0.0

    def __call__(self):
        return time.time() + self.ahead


@define
class TestedInbox:
    """An open inbox for which time can pass.

    Attributes:
        inbox: the inbox.
        url: where it is stored; `None` for one in memory.
        clock: the clock of one in memory.
    """

    __test__ = False

    inbox: object
    url: object = None
    clock: ShiftedClock = field(factory=ShiftedClock)

    async def advance(self, seconds):
        self.clock.ahead += seconds
        if self.url is not None:
            await advance(self.url, seconds)


async def advance(url, seconds):
    """Change the times in a database as if time had passed."""
    changes = f"due_at = due_at - {seconds}, changed_at = changed_at - {seconds}"
    await execute(url, text(f"UPDATE relay_webhooks SET {changes}"))


@asynccontextmanager
async def open_memory_inbox(**settings):
    clock = ShiftedClock()
    yield TestedInbox(MemoryInbox(clock=clock, **settings), clock=clock)


@asynccontextmanager
async def open_sql_inbox(url, **settings):
    async with SQLInbox(url, key=KEY, **settings) as inbox:
        yield TestedInbox(inbox, url)


async def stored(inbox, state=None):
    async with aclosing(inbox.webhooks(state)) as webhooks:
        return [webhook async for webhook in webhooks]


async def lease_one(inbox):
    (lease,) = await inbox.lease(1)
    return lease


async def add_many(inbox, webhooks):
    return await asyncio.gather(*map(inbox.add, webhooks))
