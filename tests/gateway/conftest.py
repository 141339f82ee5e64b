"""Fixtures that the tests of the gateway share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from gateway_setup import running_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway_setup import GatewaySetup


@pytest.fixture
async def setup() -> AsyncIterator[GatewaySetup]:
    """A gateway with default settings, which is checked to be still serving at the end."""
    async with running_gateway() as built:
        yield built


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The audit log."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    return caplog
