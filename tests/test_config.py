from __future__ import annotations

import asyncio
import ssl
import traceback
from pathlib import Path

import aiohttp
import pytest

import plaid_relay_async
from plaid_relay_async import ConfigurationError, Credentials, Environment, RelayClient, RetryPolicy, Timeouts
from plaid_relay_async.config import (
    GatewayKey,
    check_tls,
    resolve_base_url,
    resolve_identity,
)
from plaid_relay_async.exchange import DirectExchange

VARIABLES = ("PLAID_CLIENT_ID", "PLAID_SECRET", "PLAID_ENV", "PLAID_BASE_URL")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_precedence_of_base_urls(monkeypatch):
    """Arguments come first, then PLAID_BASE_URL, then PLAID_ENV, then the sandbox."""
    assert resolve_base_url(None, None) == "https://sandbox.plaid.com"
    monkeypatch.setenv("PLAID_ENV", "production")
    assert resolve_base_url(None, None) == "https://production.plaid.com"
    monkeypatch.setenv("PLAID_BASE_URL", "https://gateway.example/plaid/")
    assert resolve_base_url(None, None) == "https://gateway.example/plaid"
    assert resolve_base_url(None, "sandbox") == "https://sandbox.plaid.com"
    assert resolve_base_url(None, Environment.PRODUCTION) == "https://production.plaid.com"
    assert resolve_base_url("http://127.0.0.1:9/", Environment.PRODUCTION) == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sandbox.plaid.com", "must start with https://"),
        ("ftp://plaid.com", "must start with https://"),
        ("https://", "name a host"),
        ("https://[", "must start with https://"),
        ("https://h:99999", "must start with https://"),
        ("https://user:word@h", "nothing else"),
        ("https://h/?x=1", "nothing else"),
        ("https://h/#x", "nothing else"),
        ("http://example.com", "plain http to example.com"),
        ("http://127.0.0.1.example.com", "plain http"),
        ("http://10.0.0.1", "plain http"),
        ("https://host\\evil.invalid", "backslashes"),
        ("https://h/a\\b", "backslashes"),
        ("https://\ud800", "invisible characters"),
        ("https://h/\udcff", "invisible characters"),
        ("https://h\0", "invisible characters"),
        ("https://h\n", "invisible characters"),
        ("https://h\x7f", "invisible characters"),
        (" https://h", "without spaces"),
        ("https://h\xa0", "invisible characters"),
        ("https://a b", "without spaces"),
        ("https://a..b", "name a host"),
        ("https://.", "name a host"),
        ("https://h%5Cevil", "name a host"),
        ("https://h;x", "name a host"),
        ("https://[v1.x]", "name a host"),
        ("https://" + "a" * 64, "name a host"),
        ("https://h:0", "name a host"),
        ("https://\u2100", "name a host"),
        ("http://h?", "nothing else"),
        ("http://h#", "nothing else"),
        ("https://h/a?", "nothing else"),
        ("https://@h", "nothing else"),
        ("https://h/@", "nothing else"),
        (5, "must start with https://"),
        (b"https://h", "must start with https://"),
    ],
)
def test_an_invalid_or_unsafe_base_url_is_rejected(url, problem):
    """Credentials go over TLS, or to this machine, and only to an unambiguous address."""
    with pytest.raises(ConfigurationError, match="base_url") as caught:
        resolve_base_url(url, None)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:1",
        "http://LocalHost.",
        "http://x.localhost",
        "http://[::1]:5",
        "http://127.8.0.1",
        "http://127.1",
        "http://0x7f.1",
        "http://2130706433",
        "http://\uff11\uff12\uff17.0.0.1",
        "http://[::ffff:127.0.0.1]",
    ],
)
def test_loopback_may_use_plain_http(url):
    """What stays on this machine needs no TLS."""
    assert resolve_base_url(url, None) == url


PRODUCTION = [
    "https://production.plaid.com",
    "https://production.plaid.com:443",
    "https://Production.plaid.com",
    "HTTPS://PRODUCTION.PLAID.COM.",
    "https://production.plaid.com.:443/v1",
    "https://\uff50roduction.plaid.com",
    "https://\uff30\uff32\uff2f\uff24\uff35\uff23\uff34\uff29\uff2f\uff2e.plaid\u3002com",
]


@pytest.mark.parametrize("url", PRODUCTION)
def test_production_is_recognized_in_any_spelling(url):
    """A port, upper case, a final dot, and full-width letters and dots don't change the host."""
    assert Environment.from_url(resolve_base_url(url, None)) is Environment.PRODUCTION


@pytest.mark.parametrize(
    "url",
    ["https://%70roduction.plaid.com", "https://production%2eplaid.com", "https://produc\xadtion.plaid.com"],
)
def test_an_ambiguous_host_is_rejected(url):
    """A host with percent-encoding or an invisible character isn't a valid address."""
    with pytest.raises(ConfigurationError, match="name a host"):
        resolve_base_url(url, None)


@pytest.mark.parametrize(
    "url",
    ["https://sandbox.plaid.com/", "https://production.plaid.com.example", "http://127.0.0.1:5", "https://h"],
)
def test_another_host_is_not_production(url):
    """A host that only starts or ends in the same way is a different one."""
    assert Environment.from_url(url) is not Environment.PRODUCTION


@pytest.mark.parametrize(
    "url",
    [
        "https://a_b.example.",
        "https://m\xfcller.example:8443/p\xe4th",
        "https://[2001:db8::1]:5",
        "HTTPS://H",
    ],
)
async def test_an_accepted_address_can_be_used(url):
    """No request fails because of an address that the client has accepted."""
    address = resolve_base_url(url, None) + "/credit/relay/create"
    async with aiohttp.TCPConnector() as connector:
        prepared = DirectExchange(connector, asyncio.get_running_loop()).prepare(address, {})
    assert prepared.head.startswith(b"POST /")
    assert b"/credit/relay/create HTTP/1.1\r\n" in prepared.head


@pytest.mark.parametrize("url", ["https://host\\evil.invalid", "https://\ud800", "http://h?", "http://h#"])
def test_a_base_url_is_checked_when_the_client_is_created(url):
    """The error of an invalid address shows no secret, nor do its frames."""
    with pytest.raises(ConfigurationError) as caught:
        RelayClient(gateway_key="the-key-of-a-caller", base_url=url)
    report = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    package = str(Path(plaid_relay_async.__file__).parent)
    ours = [frame for frame in report.stack if frame.filename.startswith(package)]
    assert ours
    assert "the-key-of-a-caller" not in str([frame.locals for frame in ours])


@pytest.mark.parametrize(
    "proxy",
    ["proxy.example:port", "http://user:hush@h\\evil", "http://\ud800", "http://h:0", 0, 5],
)
def test_a_proxy_url_is_checked_when_the_client_is_created(proxy):
    """An invalid proxy URL is rejected without being shown, because it may contain a password."""
    with pytest.raises(ConfigurationError, match=r"^proxy must be a URL") as caught:
        RelayClient(Credentials("a", "b"), proxy=proxy)
    assert "hush" not in str(caught.value)


def test_an_unknown_environment_is_rejected(monkeypatch):
    """The error quotes the name, such as that of Plaid's former development environment."""
    with pytest.raises(ConfigurationError, match=r"must be sandbox or production, not 'development'"):
        resolve_base_url(None, "development")
    for name in ("", 5, []):  # an empty name isn't a default
        with pytest.raises(ConfigurationError, match=r"must be sandbox or production \["):
            resolve_base_url(None, name)


def test_credentials_come_from_the_environment(monkeypatch):
    """Without an argument, PLAID_CLIENT_ID and PLAID_SECRET are used; a missing one is named."""
    with pytest.raises(ConfigurationError, match="set PLAID_CLIENT_ID and PLAID_SECRET"):
        resolve_identity(None, None)
    monkeypatch.setenv("PLAID_CLIENT_ID", "me")
    with pytest.raises(ConfigurationError, match="set PLAID_SECRET"):
        resolve_identity(None, None)
    monkeypatch.setenv("PLAID_SECRET", "hush hush")
    with pytest.raises(ConfigurationError, match=r"^PLAID_SECRET contains whitespace") as caught:
        resolve_identity(None, None)
    assert "hush" not in str(caught.value)
    assert caught.value.__context__ is None, "its frames contain the secret"
    monkeypatch.setenv("PLAID_SECRET", "hush-hush")
    assert resolve_identity(None, None) == Credentials("me", "hush-hush")


def test_credentials_and_a_gateway_key_are_exclusive():
    """Only one of them is allowed, and only of its own type."""
    assert resolve_identity(None, "key") == GatewayKey("key")
    with pytest.raises(ConfigurationError, match="not both"):
        resolve_identity(Credentials("a", "b"), "key")
    with pytest.raises(ConfigurationError, match="credentials must be"):
        resolve_identity(("a", "b"), None)  # type: ignore[arg-type]  # a deliberate mistake
    with pytest.raises(ConfigurationError, match="gateway_key"):
        resolve_identity(None, "with space")


@pytest.mark.parametrize("secret", ["", "with space", "with\nline", "schlüssel", 5])
def test_a_secret_that_cannot_be_a_header_is_rejected(secret):
    """The error has the name of the field, and doesn't show the secret."""
    with pytest.raises(ConfigurationError, match=r"^secret ") as caught:
        Credentials("me", secret)
    assert str(secret) not in str(caught.value).replace("[not sent]", "") or secret == ""
    assert "hush" not in repr(Credentials("me", "hush"))


@pytest.mark.parametrize(
    ("create", "name"),
    [
        (lambda: Timeouts(connect=0), "connect"),
        (lambda: Timeouts(read=-1), "read"),
        (lambda: Timeouts(slow_read=float("inf")), "slow_read"),
        (lambda: Timeouts(total=True), "total"),
        (lambda: Timeouts(drain="5"), "drain"),
        (lambda: Timeouts(connect=10**5000), "connect"),
        (lambda: RetryPolicy(attempts=0), "attempts"),
        (lambda: RetryPolicy(attempts=2.5), "attempts"),
        (lambda: RetryPolicy(max_pause=float("nan")), "max_pause"),
        (lambda: RetryPolicy(attempts=-(10**5000)), "attempts"),
        (lambda: RetryPolicy(replay="never"), "replay"),
        (lambda: RetryPolicy(replay=[]), "replay"),
        (lambda: RelayClient(Credentials("a", "b"), credentials_in=[]), "credentials_in"),
    ],
)
def test_an_invalid_number_is_rejected(create, name):
    """The error says what the setting must be."""
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        create()


def test_a_call_can_have_its_own_total():
    """A call's own timeout replaces the total and nothing else; None means no limit."""
    assert Timeouts(read=7).with_total(3) == Timeouts(read=7, total=3)
    assert Timeouts().with_total(None) == Timeouts()
    assert Timeouts(total=None).total is None


def test_tls_is_verified():
    """A context that doesn't verify the server is rejected."""
    context = ssl.create_default_context()
    assert check_tls(context) is context
    assert check_tls(None) is None
    context.check_hostname = False
    with pytest.raises(ConfigurationError, match="must verify"):
        check_tls(context)
    with pytest.raises(ConfigurationError, match=r"must be an ssl\.SSLContext"):
        check_tls(False)  # type: ignore[arg-type]  # in aiohttp, False turns verification off


def test_settings_are_checked_when_the_client_is_created(monkeypatch):
    """Invalid settings are rejected before an event loop runs."""
    with pytest.raises(ConfigurationError, match="credentials_in"):
        RelayClient(Credentials("a", "b"), credentials_in="cookies")  # type: ignore[arg-type]  # a deliberate mistake
    with pytest.raises(ConfigurationError, match="connections"):
        RelayClient(Credentials("a", "b"), connections=0)
    assert repr(RelayClient(Credentials("a", "hush"))) == "<RelayClient for https://sandbox.plaid.com>"


@pytest.mark.parametrize(
    "application",
    [
        "canary-name/1.0",
        ("canary-name",),
        ("canary-name", "1.0", "extra"),
        ["canary-name", "1.0"],
        {"canary-name": "1.0"},
        ("canary-name", ""),
        ("canary name", "1.0"),
        ("canary/name", "1.0"),
        ("canary-name", "1.0 (x)"),
        ("canary-name", "1.0\n"),
        ("canary-name", "1.0\r\nPLAID-SECRET: x"),
        ("canary-n\u00e4me", "1.0"),
        ("canary-name", "\u0661"),
        ("canary-name", 1.0),
        ("canary-name", None),
        (),
        "ab",
    ],
)
def test_an_invalid_application_is_refused(application):
    """Anything other than two tokens of RFC 9110 is refused, and no error quotes it."""
    with pytest.raises(ConfigurationError, match="application must be a name and a version") as caught:
        RelayClient(Credentials("me", "canary-secret"), application=application)
    assert "canary" not in str(caught.value)
