"""What a page that a person has open elsewhere may do to a gateway on their machine: nothing."""

from __future__ import annotations

import pytest
from gateway_setup import running_gateway
from raw_http import CREATE, CREATE_BODY, HOST_PLACEHOLDER, build_request


def port_of(held) -> str:
    return held.gateway.url.rpartition(":")[2]


ORIGINS = [
    "https://evil.example",
    "http://evil.example:PORT",
    "null",
    "",
    "http://127.0.0.1",
    "http://127.0.0.1:1",
    "http://127.0.0.1:PORT.evil.example",
    "http://127.0.0.1.evil.example:PORT",
    "http://evil.example#http://127.0.0.1:PORT",
    "http://127.0.0.1:PORT@evil.example",
    "http://user@127.0.0.1:PORT",
    "http://127.0.0.1:PORT/",
    "http://127.0.0.1:PORT, https://evil.example",
    "https://evil.example http://127.0.0.1:PORT",
    "127.0.0.1:PORT",
    "//127.0.0.1:PORT",
    "file://",
    "chrome-extension://abcdefghijklmnop",
    "http://127.0.0.1:PORT\x00",
    "http://[::1",
    "http://127.0.0.1:PORTx",
    "http://127.0.0.1:99999999",
]


@pytest.mark.parametrize("origin", ORIGINS)
async def test_another_origin_is_refused_with_a_key_as_well(held, origin):
    """A request that a browser says comes from another page isn't carried out, and gets no leave to be read."""
    said = origin.replace("PORT", port_of(held))
    answer = await held.one(build_request(CREATE, CREATE_BODY, f"Origin: {said}", key=held.keys["lender"]))
    assert answer.status in {400, 403}
    assert answer.code in {"ORIGIN_NOT_ALLOWED", "INVALID_HTTP"}
    assert not any(name.lower().startswith("access-control-") for name in answer.headers)
    held.assert_upstream_requests()


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "CROSS-SITE", "none, cross-site", "other"])
async def test_another_site_is_refused_without_an_origin(held, site):
    """Sec-Fetch-Site alone tells, too."""
    answer = await held.one(
        build_request(CREATE, CREATE_BODY, f"Sec-Fetch-Site: {site}", key=held.keys["lender"])
    )
    assert (answer.status, answer.code) == (403, "ORIGIN_NOT_ALLOWED")
    held.assert_upstream_requests()


async def test_the_gateways_own_page_may_call(held):
    """The console's own requests pass."""
    lines = [f"Origin: http://{HOST_PLACEHOLDER}", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"]
    assert (await held.one(build_request(CREATE, CREATE_BODY, *lines, key=held.keys["lender"]))).status == 200


async def test_a_preflight_gets_no_leave(held):
    """Another origin that asks first is refused, and told nothing of what is allowed."""
    lines = ["Origin: https://evil.example", "Access-Control-Request-Method: POST"]
    lines += ["Access-Control-Request-Headers: authorization, content-type"]
    answer = await held.one(build_request(CREATE, b"", *lines, method="OPTIONS", content_type=None))
    assert answer.status in {403, 405}
    assert not any(name.lower().startswith("access-control-") for name in answer.headers)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_a_form_elsewhere_carries_nothing_out(held, kind):
    """A form whose one field makes JSON is neither of the right kind nor of the right origin."""
    body = f'{{"secret": "{held.keys["lender"]}", "secondary_client_id": "p1", "x": "="}}'.encode()
    for lines in ([], ["Origin: null"], ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"]):
        answer = await held.one(build_request(CREATE, body, *lines, content_type=kind))
        assert answer.status in {403, 415}
    held.assert_upstream_requests()


STRANGERS = [
    "evil.example",
    "evil.example:PORT",
    "EVIL.example.:PORT",
    "127.0.0.1.evil.example:PORT",
    "localhost.evil.example:PORT",
    "127.0.0.1:PORT.evil.example",
    "127.0.0.1@evil.example:PORT",
    "evil.example@127.0.0.1:PORT",
    "evil.example/127.0.0.1:PORT",
    "127.0.0.1:PORT/evil.example",
    "evil.example#127.0.0.1:PORT",
    "127.0.0.1:PORT, evil.example",
    "evil.example 127.0.0.1:PORT",
    "evil.example:PORT:127.0.0.1",
    "",
    " ",
    ":PORT",
    "169.254.169.254",
    "api.plaid.com",
    "sandbox.plaid.com",
    "[::1",
    "[::1].evil.example",
    "[fe80::1]:PORT",
    "10.0.0.1:PORT",
    "127.0.0.1:PORT\x00",
    "*",
    "a..b",
    "localhost:PORTx",
    "xn--localhost",
]


@pytest.mark.parametrize("path", ["/", CREATE, "/console/settings.json"])
@pytest.mark.parametrize("host", STRANGERS)
async def test_a_name_that_is_rebound_to_this_machine_is_refused(held, host, path):
    """A Host that isn't the gateway's gets nothing, neither a call nor the page."""
    said = host.replace("PORT", port_of(held))
    method = "POST" if path == CREATE else "GET"
    answer = await held.one(
        build_request(path, CREATE_BODY, host=said, key=held.keys["lender"], method=method)
    )
    assert answer.status in {400, 421}
    assert answer.code in {"HOST_NOT_ALLOWED", "INVALID_HTTP"}
    held.assert_upstream_requests()


async def test_a_request_without_a_host_is_refused(held):
    """Who doesn't say whom it calls isn't answered."""
    answer = await held.one(build_request(host=None, key=held.keys["lender"]))
    assert answer.status in {400, 421}
    held.assert_upstream_requests()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:PORT",
        "localhost:PORT",
        "LOCALHOST:PORT",
        "localhost.:PORT",
        "[::1]:PORT",
        "[::ffff:127.0.0.1]",
        "127.1",
        "0x7f.1",
    ],
)
async def test_loopback_by_any_of_its_names_is_answered(held, host):
    """The spelling makes no difference."""
    said = host.replace("PORT", port_of(held))
    assert (await held.one(build_request(host=said, key=held.keys["lender"]))).status == 200


async def test_a_gateway_answers_to_the_names_it_is_given():
    """And still to no other."""
    async with running_gateway(names=["Gateway.example.", "b\xfccher.example"]) as held:
        for host, status in (
            ("gateway.example", 200),
            ("Gateway.Example:443", 200),
            ("gateway.example.", 200),
            ("xn--bcher-kva.example", 200),
            ("x.gateway.example", 421),
        ):
            answer = await held.exchange_one(build_request(host=host, key=held.keys["lender"]))
            assert answer.status == status


PAGES = ["/", "/console/settings.json", "/healthz", "/readyz"]


@pytest.mark.parametrize("path", PAGES)
async def test_the_page_is_sealed_off(held, path):
    """No other page frames it, reads it, or puts a script into it."""
    answer = await held.one(build_request(path, b"", method="GET", content_type=None))
    assert answer.status == 200
    headers = answer.headers
    assert not any(
        name.lower().startswith(("access-control-", "set-cookie", "server")) for name in headers
    ) or ("aiohttp" not in headers.get("Server", "") and "Python" not in headers.get("Server", ""))
    if path in {"/", "/console/settings.json"}:
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_own_answers_are_kept_by_nobody(held):
    """A refusal isn't stored, nor sniffed."""
    answer = await held.one(build_request())
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json["request_id"].startswith("gateway-")
    assert answer.json["display_message"] is None
