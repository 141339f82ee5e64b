"""Links that open the console with a key filled in: what a browser keeps of them is of no use."""

from __future__ import annotations

import json

import pytest
from gateway_setup import running_gateway
from raw_http import build_request

from plaid_relay_async.errors import ConfigurationError, Hidden
from plaid_relay_async.gateway import Gateway, pages

HANDOVER = "/console/handover.json"
VALUES = {"key": "plaid-gateway-canary", "report_token": "assets-sandbox-canary"}


def code_in(link: str) -> bytes:
    return json.dumps(link.partition("#code=")[2]).encode()


async def test_a_code_is_exchanged_once(held, audit):
    """The values come for the code, once; nothing keeps the response or logs it."""
    link = held.gateway.console_link(**VALUES)
    assert link.startswith(f"{held.gateway.url}/#code=")
    assert not any(value in link for value in VALUES.values())
    answer = await held.one(build_request(HANDOVER, code_in(link)))
    assert (answer.status, json.loads(answer.body)) == (200, VALUES)
    assert answer.headers["Cache-Control"] == "no-store"
    assert not any(name.lower().startswith("access-control-") for name in answer.headers)
    again = await held.one(build_request(HANDOVER, code_in(link)))
    assert (again.status, again.code) == (404, "NOT_FOUND")
    assert "canary" not in audit.text
    held.assert_upstream_requests()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'""', b"null", b"[]", b"\xff", b'{"code": "x"}', b"x" * 200_000]
)
async def test_a_wrong_code_uses_nothing_up(held, body):
    """Whoever guesses gets nothing, and takes nothing away."""
    link = held.gateway.console_link(**VALUES)
    answer = await held.one(build_request(HANDOVER, body))
    assert (answer.status, answer.code) == (404, "NOT_FOUND")
    assert (await held.one(build_request(HANDOVER, code_in(link)))).status == 200


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["Origin: https://evil.example"], "ORIGIN_NOT_ALLOWED"),
        (["Sec-Fetch-Site: cross-site"], "ORIGIN_NOT_ALLOWED"),
        (["Content-Encoding: gzip"], "UNSUPPORTED_MEDIA_TYPE"),
        (["Content-Encoding: identity", "Content-Encoding: identity"], "INVALID_HEADERS"),
    ],
)
async def test_a_page_elsewhere_gets_nothing(held, lines, code):
    """The checks of a call hold for an exchange, too."""
    link = held.gateway.console_link(**VALUES)
    answer = await held.one(build_request(HANDOVER, code_in(link), *lines))
    assert answer.status in {400, 403, 415}
    assert answer.code == code
    assert (await held.one(build_request(HANDOVER, code_in(link)))).status == 200


async def test_a_body_that_is_too_large(held):
    """It is refused before it is read, and its connection is closed."""
    answer = await held.one(build_request(HANDOVER, b"x" * (1024 * 1024 + 1)))
    assert (answer.status, answer.code) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS"])
async def test_an_exchange_is_a_post(held, method):
    """A link to it, which a browser may fetch ahead, uses nothing up."""
    link = held.gateway.console_link(**VALUES)
    assert (await held.one(build_request(HANDOVER, code_in(link), method=method))).status in {404, 405}
    assert (await held.one(build_request(HANDOVER, code_in(link)))).status == 200


def test_a_code_expires():
    """After 300 seconds it is worth nothing, and other codes still are what they were."""
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
async def test_a_link_that_there_can_not_be(settings):
    """A link needs the console, on an address of this machine."""
    async with running_gateway(**settings) as held:
        with pytest.raises(ConfigurationError, match="on a loopback address"):
            held.gateway.console_link(**VALUES)


def test_a_link_before_the_gateway_listens():
    """There is no address yet."""
    with pytest.raises(RuntimeError, match="isn't started"):
        Gateway([], credentials={}).console_link(**VALUES)
