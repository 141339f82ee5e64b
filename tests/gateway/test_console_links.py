"""Links that open the console with a key filled in: a browser's history doesn't reveal the key."""

from __future__ import annotations

import json

import pytest
from gateway_setup import running_gateway
from raw_http import build_request

from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.gateway import Gateway, pages
from plaid_relay_async.redaction import Hidden

HANDOVER = "/console/handover.json"
VALUES = {"key": "plaid-gateway-canary", "report_token": "assets-sandbox-canary"}


def code_of(link: str) -> bytes:
    """Return the body of an exchange for the code in a link."""
    return json.dumps(link.partition("#code=")[2]).encode()


async def test_a_code_is_exchanged_once(setup, audit):
    """The values are returned for the code once; the response isn't cached or logged."""
    link = setup.gateway.console_link(**VALUES)
    assert link.startswith(f"{setup.gateway.url}/#code=")
    assert not any(value in link for value in VALUES.values())
    response = await setup.exchange_one(build_request(HANDOVER, code_of(link)))
    assert (response.status, json.loads(response.body)) == (200, VALUES)
    assert response.headers["Cache-Control"] == "no-store"
    assert not any(name.lower().startswith("access-control-") for name in response.headers)
    again = await setup.exchange_one(build_request(HANDOVER, code_of(link)))
    assert (again.status, again.error_code) == (404, "NOT_FOUND")
    assert "canary" not in audit.text
    setup.assert_upstream_requests()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'""', b"null", b"[]", b"\xff", b'{"code": "x"}', b"x" * 200_000]
)
async def test_an_invalid_code_invalidates_no_other(setup, body):
    """A guessed code returns nothing and leaves valid codes valid."""
    link = setup.gateway.console_link(**VALUES)
    response = await setup.exchange_one(build_request(HANDOVER, body))
    assert (response.status, response.error_code) == (404, "NOT_FOUND")
    assert (await setup.exchange_one(build_request(HANDOVER, code_of(link)))).status == 200


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["Origin: https://evil.example"], "ORIGIN_NOT_ALLOWED"),
        (["Sec-Fetch-Site: cross-site"], "ORIGIN_NOT_ALLOWED"),
        (["Content-Encoding: gzip"], "UNSUPPORTED_MEDIA_TYPE"),
        (["Content-Encoding: identity", "Content-Encoding: identity"], "INVALID_HEADERS"),
    ],
)
async def test_a_page_of_another_site_gets_nothing(setup, lines, code):
    """The checks of a call also apply to an exchange."""
    link = setup.gateway.console_link(**VALUES)
    response = await setup.exchange_one(build_request(HANDOVER, code_of(link), *lines))
    assert response.status in {400, 403, 415}
    assert response.error_code == code
    assert (await setup.exchange_one(build_request(HANDOVER, code_of(link)))).status == 200


async def test_a_body_that_is_too_large(setup):
    """It is rejected before it is read, and its connection is closed."""
    response = await setup.exchange_one(build_request(HANDOVER, b"x" * (1024 * 1024 + 1)))
    assert (response.status, response.error_code) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS"])
async def test_an_exchange_requires_post(setup, method):
    """A link to it, which a browser may prefetch, doesn't use up a code."""
    link = setup.gateway.console_link(**VALUES)
    assert (await setup.exchange_one(build_request(HANDOVER, code_of(link), method=method))).status in {
        404,
        405,
    }
    assert (await setup.exchange_one(build_request(HANDOVER, code_of(link)))).status == 200


def test_a_code_expires():
    """After 300 seconds a code is invalid; later codes stay valid."""
    time = [0.0]
    handovers = pages.OneTimeCodes(now=lambda: time[0])
    early = json.dumps(handovers.issue({"key": "early"})).encode()
    time[0] = 200.0
    late = json.dumps(handovers.issue({"key": "late"})).encode()
    time[0] = 300.0
    assert handovers.exchange(Hidden(early)) is None
    page = handovers.exchange(Hidden(late))
    assert page is not None
    assert json.loads(page.body) == {"key": "late"}
    assert "late" not in repr(handovers)


@pytest.mark.parametrize("settings", [{"console": False}, {"host": "0.0.0.0", "plain_http": True}])
async def test_a_link_needs_the_console_on_loopback(settings):
    """Without either, console_link() raises an error."""
    async with running_gateway(**settings) as setup:
        with pytest.raises(ConfigurationError, match="on a loopback address"):
            setup.gateway.console_link(**VALUES)


def test_a_link_needs_a_started_gateway():
    """Before the start there is no address."""
    with pytest.raises(RuntimeError, match="isn't started"):
        Gateway([], credentials={}).console_link(**VALUES)
