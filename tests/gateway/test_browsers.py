"""Pages of other sites, open in a browser on the gateway's machine, can't use the gateway."""

from __future__ import annotations

import pytest
from gateway_setup import running_gateway
from raw_http import CREATE, CREATE_BODY, HOST_PLACEHOLDER, build_request


def port_of(setup) -> str:
    return setup.gateway.url.rpartition(":")[2]


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
async def test_another_origin_is_rejected_even_with_a_key(setup, origin):
    """A request for a page of another origin isn't executed, and its response has no CORS headers."""
    value = origin.replace("PORT", port_of(setup))
    response = await setup.exchange_one(
        build_request(CREATE, CREATE_BODY, f"Origin: {value}", key=setup.keys["lender"])
    )
    assert response.status in {400, 403}
    assert response.error_code in {"ORIGIN_NOT_ALLOWED", "INVALID_HTTP"}
    assert not any(name.lower().startswith("access-control-") for name in response.headers)
    setup.assert_upstream_requests()


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "CROSS-SITE", "none, cross-site", "other"])
async def test_another_site_is_rejected_without_an_origin(setup, site):
    """Sec-Fetch-Site is sufficient to reject a request."""
    response = await setup.exchange_one(
        build_request(CREATE, CREATE_BODY, f"Sec-Fetch-Site: {site}", key=setup.keys["lender"])
    )
    assert (response.status, response.error_code) == (403, "ORIGIN_NOT_ALLOWED")
    setup.assert_upstream_requests()


async def test_the_gateways_own_page_may_call(setup):
    """The console's own requests are accepted."""
    lines = [f"Origin: http://{HOST_PLACEHOLDER}", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"]
    assert (
        await setup.exchange_one(build_request(CREATE, CREATE_BODY, *lines, key=setup.keys["lender"]))
    ).status == 200


async def test_a_preflight_is_rejected(setup):
    """The response doesn't say what would be allowed."""
    lines = ["Origin: https://evil.example", "Access-Control-Request-Method: POST"]
    lines += ["Access-Control-Request-Headers: authorization, content-type"]
    response = await setup.exchange_one(
        build_request(CREATE, b"", *lines, method="OPTIONS", content_type=None)
    )
    assert response.status in {403, 405}
    assert not any(name.lower().startswith("access-control-") for name in response.headers)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_a_form_of_another_site_executes_nothing(setup, kind):
    """A form whose field is valid JSON has the wrong content type, and the wrong origin."""
    body = f'{{"secret": "{setup.keys["lender"]}", "secondary_client_id": "p1", "x": "="}}'.encode()
    for lines in ([], ["Origin: null"], ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"]):
        response = await setup.exchange_one(build_request(CREATE, body, *lines, content_type=kind))
        assert response.status in {403, 415}
    setup.assert_upstream_requests()


OTHER_HOSTS = [
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
@pytest.mark.parametrize("host", OTHER_HOSTS)
async def test_a_rebound_host_name_is_rejected(setup, host, path):
    """A request with another Host gets neither a call nor the page, so DNS rebinding has no effect."""
    value = host.replace("PORT", port_of(setup))
    method = "POST" if path == CREATE else "GET"
    response = await setup.exchange_one(
        build_request(path, CREATE_BODY, host=value, key=setup.keys["lender"], method=method)
    )
    assert response.status in {400, 421}
    assert response.error_code in {"HOST_NOT_ALLOWED", "INVALID_HTTP"}
    setup.assert_upstream_requests()


async def test_a_request_without_a_host_is_rejected(setup):
    """The gateway can't check which host was meant."""
    response = await setup.exchange_one(build_request(host=None, key=setup.keys["lender"]))
    assert response.status in {400, 421}
    setup.assert_upstream_requests()


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
async def test_each_name_of_loopback_is_accepted(setup, host):
    """The spelling of the host makes no difference."""
    value = host.replace("PORT", port_of(setup))
    assert (await setup.exchange_one(build_request(host=value, key=setup.keys["lender"]))).status == 200


async def test_a_gateway_accepts_its_allowed_hosts():
    """Other hosts are still rejected."""
    async with running_gateway(allowed_hosts=["Gateway.example.", "b\xfccher.example"]) as setup:
        for host, status in (
            ("gateway.example", 200),
            ("Gateway.Example:443", 200),
            ("gateway.example.", 200),
            ("xn--bcher-kva.example", 200),
            ("x.gateway.example", 421),
        ):
            response = await setup.exchange_one(build_request(host=host, key=setup.keys["lender"]))
            assert response.status == status


PAGES = ["/", "/console/settings.json", "/healthz", "/readyz"]


@pytest.mark.parametrize("path", PAGES)
async def test_the_page_is_isolated_from_other_pages(setup, path):
    """Other pages can't frame it, read it, or run a script in it."""
    response = await setup.exchange_one(build_request(path, b"", method="GET", content_type=None))
    assert response.status == 200
    headers = response.headers
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


async def test_error_responses_are_not_cached(setup):
    """Caches don't store them, and browsers don't guess their type."""
    response = await setup.exchange_one(build_request())
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Type"].startswith("application/json")
    assert response.json["request_id"].startswith("gateway-")
    assert response.json["display_message"] is None
