"""What the tests of the receiver share: a client whose credentials are canaries, an inbox, and the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from canaries import CREDENTIALS
from support import QUICK
from webhook_receiving import FaultyInbox

from plaid_relay_async import RelayClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from plaid_relay_async.simulator import Simulator


@pytest.fixture
async def client(plaid: Simulator) -> AsyncIterator[RelayClient]:
    async with RelayClient(CREDENTIALS, base_url=plaid.url, retry=QUICK) as relay_client:
        yield relay_client


@pytest.fixture
def inbox() -> FaultyInbox:
    return FaultyInbox()


@pytest.fixture
def reasons() -> list[str]:
    """The reasons of the refusals of a receiver that has `on_refused=reasons.append`."""
    return []
