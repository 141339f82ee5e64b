"""Requests to Temporal's server: which ones are repeated, and what is logged about it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from attrs import define
from temporalio.service import RPCError, RPCStatusCode

from plaid_relay_async import ConfigurationError
from plaid_relay_async.temporal.requests import TemporalRequests


@define
class Responses:
    """What a server responds to a request, one after another."""

    responses: list

    async def __call__(self):
        response = self.responses.pop(0)
        if isinstance(response, BaseException):
            raise response
        return response


def rpc_error(status):
    return RPCError("quotes the request", status, b"")


@pytest.fixture
def requests():
    return TemporalRequests(backoff=(0.001, 0.002))


async def test_a_request_is_repeated_until_the_server_responds(requests):
    """A server that is unavailable, or ends the request because it is stopped, is waited for."""
    request = Responses([rpc_error(RPCStatusCode.UNAVAILABLE), asyncio.CancelledError(), "response"])
    assert await requests.repeat(request) == "response"


async def test_a_missing_object_is_not_an_error(requests):
    """The response is `None` then."""
    assert await requests.repeat(Responses([rpc_error(RPCStatusCode.NOT_FOUND)])) is None


async def test_a_request_without_permission_is_rejected(requests):
    """The error says what to check, without the server's text, which may quote the request."""
    request = Responses([rpc_error(RPCStatusCode.PERMISSION_DENIED)])
    with pytest.raises(ConfigurationError, match="permission denied") as raised:
        await requests.repeat(request)
    assert "API key" in raised.value.advice
    assert "quotes" not in str(raised.value)


async def test_there_is_one_warning_about_a_server_that_does_not_respond(requests, caplog):
    """It follows the longest wait. The other records, also those of other requests, have the level INFO."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.temporal")
    for _ in range(2):
        await requests.repeat(Responses([*[rpc_error(RPCStatusCode.UNAVAILABLE)] * 3, "response"]))
    warning = "Temporal doesn't respond (unavailable); calls wait for it"
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("INFO", "Temporal didn't respond (unavailable); trying again in 0.0 s"),
        ("WARNING", warning),
        ("INFO", warning),
        ("INFO", "Temporal didn't respond (unavailable); trying again in 0.0 s"),
        ("INFO", warning),
        ("INFO", warning),
    ]
