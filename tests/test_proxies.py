"""Calls through a proxy: which proxy is used, what it receives, and what its errors mean."""

from __future__ import annotations

import socket

import pytest
from connect_proxy import SECRET, server_behind_proxy
from support import OWNER, QUICK, session_of

from plaid_relay_async import (
    ConfigurationError,
    NotSentError,
    PlaidServerError,
    RelayClient,
    RelayCreateRequest,
    RetryPolicy,
)
from plaid_relay_async.exchange import SessionExchange
from plaid_relay_async.gateway import Gateway
from plaid_relay_async.gateway.keys import new_key
from plaid_relay_async.proxies import resolve_proxy

PLAID = "https://plaid.example"
VARIABLES = (
    "https_proxy",
    "HTTPS_PROXY",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def resolved_address(
    base_url: str = PLAID, proxy: str | None = None, *, trust_env: bool = True
) -> str | None:
    proxy = resolve_proxy(base_url, proxy, trust_env=trust_env)
    return proxy and proxy.address


# ------------------------------------------------------------------------------- which proxy is used


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://a:1"}, "http://a:1"),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:2"}, "http://a:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://b:2"}, None),
        ({"HTTPS_PROXY": "", "ALL_PROXY": "http://b:2"}, None),
        ({"ALL_PROXY": "http://b:2"}, "http://b:2"),
        ({"all_proxy": "http://a:1", "ALL_PROXY": "http://b:2"}, "http://a:1"),
        ({"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "socks5://b:2"}, "http://a:1"),
        ({"HTTP_PROXY": "http://a:1", "http_proxy": "http://a:1"}, None),
        ({"HTTPS_PROXY": "proxy.internal:3128"}, "http://proxy.internal:3128"),
        ({"HTTPS_PROXY": " http://a:1/ "}, "http://a:1"),
        ({"HTTPS_PROXY": "https://User:pass%40word@[fd00::1]:3128"}, "https://[fd00::1]:3128"),
    ],
)
def test_the_environment_is_read_as_curl_reads_it(monkeypatch, variables, address):
    """The lower-case variable comes first, an empty one means no proxy, and HTTP_PROXY isn't for https."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert resolved_address() == address
    assert resolved_address(trust_env=False) is None


@pytest.mark.parametrize(
    ("exceptions", "url", "direct"),
    [
        ("plaid.example", PLAID, True),
        ("PLAID.Example.", PLAID, True),
        ("plaid.example", "https://plaid.example.", True),
        ("example", PLAID, True),
        (".example", PLAID, True),
        ("*.example", PLAID, True),
        (".plaid.example", PLAID, True),
        ("aid.example", PLAID, False),
        ("other, plaid.example", PLAID, True),
        ("other plaid.example", PLAID, True),
        ("plaid.example:443", PLAID, True),
        ("plaid.example:8443", PLAID, False),
        ("plaid.example:8443", "https://plaid.example:8443", True),
        ("*", PLAID, True),
        ("*:8443", PLAID, False),
        (", ,.", PLAID, False),
        ("", PLAID, False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3/8", "https://10.9.9.9:8443", True),
        ("10.1.2.3", "https://10.1.2.3", True),
        ("10.1.2.3:443", "https://10.1.2.3", True),
        ("10.1.2.3:444", "https://10.1.2.3", False),
        ("10.0.0.0/8", PLAID, False),
        ("fd00::/8", "https://[fd00::1]", True),
        ("[fd00::1]:443", "https://[fd00::1]", True),
        ("fd00::/8", "https://10.1.2.3", False),
        # Hosts match in any spelling.
        ("10.0.0.0/8", "https://10.1", True),
        ("10.0.0.0/8", "https://[::ffff:10.1.2.3]", True),
        ("0x0a.1", "https://10.0.0.1", True),
        ("bücher.example", "https://xn--bcher-kva.example", True),
        ("plaid.example", "https://\uff50laid.example", True),
    ],
)
def test_hosts_in_no_proxy_are_called_directly(monkeypatch, exceptions, url, direct):
    """By name, domain, port, address or network, or all of them; the option --proxy isn't above it."""
    monkeypatch.setenv("HTTPS_PROXY", "http://a:1")
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert resolved_address(url) == (None if direct else "http://a:1")
    assert resolved_address(url, "http://b:2") == (None if direct else "http://b:2")
    assert resolved_address(url, "http://b:2", trust_env=False) == "http://b:2"


def test_the_lower_case_no_proxy_comes_first(monkeypatch):
    """As for the other variables, this holds also if it is empty."""
    monkeypatch.setenv("HTTPS_PROXY", "http://a:1")
    monkeypatch.setenv("NO_PROXY", "*")
    assert resolved_address() is None
    monkeypatch.setenv("no_proxy", "")
    assert resolved_address() == "http://a:1"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://localhost:1", "https://[::1]", "https://localhost."]
)
def test_loopback_is_never_called_through_a_proxy(monkeypatch, url):
    """Neither the environment nor an argument applies: credentials would leave the machine unencrypted."""
    monkeypatch.setenv("HTTPS_PROXY", "http://a:1")
    assert resolved_address(url) is None
    assert resolved_address(url, "http://b:2") is None


def test_an_empty_argument_means_no_proxy(monkeypatch):
    """It takes precedence over the environment."""
    monkeypatch.setenv("HTTPS_PROXY", "http://a:1")
    assert resolved_address(proxy="") is None


@pytest.mark.parametrize("scheme", ["socks4", "socks5", "socks5h", "SOCKS5"])
def test_a_socks_proxy_is_rejected_with_advice(monkeypatch, scheme):
    """SOCKS isn't supported; the error names the variable and the alternatives."""
    with pytest.raises(ConfigurationError, match=r"proxy is a SOCKS proxy, .*use an HTTP proxy"):
        resolved_address(proxy=f"{scheme}://me:{SECRET}@a:1")
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:{SECRET}@a:1")
    with pytest.raises(ConfigurationError, match="ALL_PROXY is a SOCKS proxy") as caught:
        resolved_address()
    assert SECRET not in str(caught.value)
    assert resolved_address("http://127.0.0.1:1") is None  # loopback needs no proxy


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a:1",
        "http://",
        "http://a:x",
        f"http://me:{SECRET}@a b:1",
        "http://a:0",
        f"http:/me:{SECRET}@a:1",
        f"http://me:12/{SECRET}@a:1",
        f"http://me:12?{SECRET}@a:1",
        f"http://me:12#{SECRET}@a:1",
    ],
)
def test_an_invalid_proxy_url_is_rejected(monkeypatch, url):
    """The error names the setting without its value; a password with a slash isn't parsed as a path."""
    with pytest.raises(ConfigurationError, match="proxy must be a URL") as caught:
        RelayClient(OWNER, base_url=PLAID, proxy=url)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY must be a URL"):
        RelayClient(OWNER, base_url=PLAID, trust_env=True)


@pytest.mark.parametrize("login", [f"me:{SECRET}\u20ac", f"m\u20ac:{SECRET}", f"m%3Ae:{SECRET}"])
def test_a_login_that_cannot_be_sent_is_rejected(login):
    """Otherwise each call would fail, and would be repeated."""
    with pytest.raises(ConfigurationError, match="proxy has a colon in the user, or") as caught:
        RelayClient(OWNER, base_url=PLAID, proxy=f"http://{login}@a:1")
    assert SECRET not in str(caught.value)
    assert resolved_address(proxy=f"http://mé:{SECRET}:%C3%A9@a:1") == "http://a:1"


def test_a_proxy_does_not_show_its_password():
    """Its address is for messages; its URL is hidden."""
    proxy = resolve_proxy(PLAID, f"http://me:{SECRET}@a:1", trust_env=False)
    assert SECRET not in repr(proxy)
    assert (proxy.url.reveal().user, proxy.url.reveal().password) == ("me", SECRET)


# ---------------------------------------------------------------------------- what a proxy receives


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_calls_go_through_a_tunnel(clean_logs, tls):
    """The proxy receives its own user and the host, and nothing of the call."""
    async with (
        server_behind_proxy(tls=tls) as (proxy, url, ours, received),
        RelayClient(OWNER, base_url=PLAID, proxy=url, ssl=ours, retry=QUICK) as client,
    ):
        assert (await client.relay.remove("t")).removed
        assert (await client.relay.remove("t")).removed
        assert SECRET not in repr(client)
    assert [path for path, *_ in received] == ["/credit/relay/remove"] * 2
    (head,) = proxy.heads
    assert head.startswith(b"CONNECT plaid.example:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " in head
    assert OWNER.secret.encode() not in head
    assert b"proxy-authorization" not in str(received).lower().encode()


async def test_trust_env_uses_the_proxy_of_the_environment(monkeypatch):
    """It doesn't read `.netrc`; without trust_env, the environment isn't read."""
    async with server_behind_proxy() as (proxy, url, ours, _):
        monkeypatch.setenv("HTTPS_PROXY", url)
        async with RelayClient(OWNER, base_url=PLAID, trust_env=True, ssl=ours, retry=QUICK) as client:
            assert (await client.relay.remove("t")).removed
            assert type(session_of(client).exchange) is SessionExchange
        assert len(proxy.heads) == 1
        async with RelayClient(OWNER, base_url="https://plaid.invalid", ssl=ours, retry=QUICK) as client:
            with pytest.raises(NotSentError, match=r"the name plaid\.invalid isn't known"):
                await client.relay.remove("t")
        assert len(proxy.heads) == 1


@pytest.mark.parametrize("login", ["default login eve password", "machine plaid.example login eve password"])
@pytest.mark.parametrize(
    "who", [{"credentials": OWNER}, {"gateway_key": "key"}], ids=["credentials", "gateway_key"]
)
async def test_no_login_of_netrc_is_sent(monkeypatch, tmp_path, login, who):
    """A login that `.netrc` has for the server, or for every server, isn't sent, and affects no call."""
    (tmp_path / "netrc").write_text(f"{login} {SECRET}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with server_behind_proxy() as (_, url, ours, received):
        monkeypatch.setenv("HTTPS_PROXY", url)
        async with RelayClient(**who, base_url=PLAID, trust_env=True, ssl=ours, retry=QUICK) as client:
            assert (await client.relay.remove("t")).removed
    ((_, headers, _),) = received
    assert headers.get("Authorization") == ("Bearer key" if "gateway_key" in who else None)


# --------------------------------------------------------------------------------- errors of a proxy


@pytest.mark.parametrize(
    ("status", "advice"),
    [(407, "percent-encoded"), (403, "ask its operator"), (502, "ask its operator"), (503, "NO_PROXY")],
)
async def test_a_proxy_that_rejects_calls_stops_a_batch(clean_logs, status, advice):
    """Nothing was sent, the error names the proxy without its password, and the batch stops after the first few."""
    async with (
        server_behind_proxy(status) as (proxy, url, ours, received),
        RelayClient(OWNER, base_url=PLAID, proxy=url, ssl=ours, retry=QUICK) as client,
    ):
        requests = RelayCreateRequest.fan_out(["t"], [f"p{n}" for n in range(100)])
        result = await client.relay.create_many(requests, concurrency=2)
    assert received == []
    assert not result.unknown
    assert len(result.failed) < 10
    error = result.failed[0].error
    assert isinstance(error, NotSentError)
    assert error.shared
    assert f"the proxy responded with {status}" in str(error)
    assert f"proxy: http://127.0.0.1:{proxy.port}" in str(error)
    assert advice in str(error)
    assert SECRET not in str(error)


@pytest.mark.parametrize("host", ["127.0.0.1", "proxy.invalid"])
async def test_an_unreachable_proxy_stops_a_batch(host):
    """The error has the proxy's address and advice."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    async with RelayClient(OWNER, base_url=PLAID, proxy=f"http://{host}:{port}", retry=QUICK) as client:
        requests = RelayCreateRequest.fan_out(["t"], [f"p{n}" for n in range(100)])
        result = await client.relay.create_many(requests, concurrency=2)
    assert len(result.failed) < 10
    error = result.failed[0].error
    assert (type(error), error.shared) == (NotSentError, True)
    assert f"proxy: http://{host}:{port}" in str(error)
    assert "Check the proxy's URL" in str(error)


async def test_an_untrusted_certificate_of_a_proxy_is_reported():
    """The error has the proxy's host and port, not the server's."""
    async with (
        server_behind_proxy(tls=True) as (proxy, url, _, _),
        RelayClient(OWNER, base_url=PLAID, proxy=url, retry=QUICK) as client,
    ):
        with pytest.raises(NotSentError, match=rf"certificate of 127\.0\.0\.1:{proxy.port} isn't trusted"):
            await client.relay.remove("t")
        assert proxy.heads == []


async def test_a_gateway_calls_plaid_through_a_proxy(monkeypatch):
    """The proxy comes from an argument, or with trust_env from the environment."""
    key, key_text = new_key("lender")
    async with server_behind_proxy() as (proxy, url, ours, received):
        settings = {"upstream": PLAID, "upstream_ssl": ours, "credentials": {"default": OWNER}}
        by_argument = Gateway([key], **settings, upstream_proxy=url)
        monkeypatch.setenv("HTTPS_PROXY", url)
        for gateway in (by_argument, Gateway([key], **settings, trust_env=True)):
            async with (
                gateway,
                RelayClient(gateway_key=key_text, base_url=gateway.url, trust_env=True) as client,
            ):
                assert (await client.relay.remove("t")).removed
    assert len(received) == len(proxy.heads) == 2


async def test_a_gateway_whose_proxy_rejects_calls_reports_that_nothing_was_sent(caplog):
    """Its caller gets that error, and its own log has the reason."""
    key, key_text = new_key("lender")
    async with server_behind_proxy(403) as (proxy, url, ours, _):
        settings = {"upstream": PLAID, "upstream_ssl": ours, "credentials": {"default": OWNER}}
        async with (
            Gateway([key], **settings, upstream_proxy=url) as gateway,
            RelayClient(gateway_key=key_text, base_url=gateway.url, retry=RetryPolicy(attempts=1)) as client,
        ):
            with pytest.raises(PlaidServerError) as caught:
                await client.relay.create(["t"], "p")
    assert caught.value.error_code == "UPSTREAM_UNREACHABLE"
    assert f"the proxy responded with 403 (ClientHttpProxyError); proxy: http://127.0.0.1:{proxy.port}" in (
        caplog.text
    )
    assert SECRET not in caplog.text
