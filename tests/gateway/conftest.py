"""What the tests of the gateway share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from fort import fort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fort import Fort


@pytest.fixture
async def held() -> AsyncIterator[Fort]:
    """A gateway as it comes, which still serves in the end."""
    async with fort() as built:
        yield built


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The audit log."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    return caplog
