"""The gateway as a server: its settings, its keys, what it tells of itself, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import subprocess
import sys
import time

import aiohttp
import anyio
import pytest
import trustme
from support import QUICK

from plaid_relay_async import ConfigurationError, Credentials, RelayClient, RetryPolicy
from plaid_relay_async.errors import (
    AuthenticationError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitError,
)
from plaid_relay_async.gateway import ALL_OPERATIONS, RELAY_OPERATIONS, Gateway, KeyFile, new_key
from plaid_relay_async.limits import RateLimit
from plaid_relay_async.simulator import Fault, Simulator

REPORT = "assets-sandbox-1"
SETS = {"default": Credentials("owner", "secret-of-the-owner")}


@pytest.fixture
async def upstream():
    async with Simulator(clients={"owner": "secret-of-the-owner"}, reports=[REPORT]) as plaid:
        yield plaid


@contextlib.asynccontextmanager
async def calling(gateway, key, **settings):
    """Our client on a gateway, with a key of it."""
    async with RelayClient(gateway_key=key, base_url=gateway.url, **{"retry": QUICK} | settings) as client:
        yield client


@contextlib.asynccontextmanager
async def browsing():
    async with aiohttp.ClientSession() as session:

        async def ask(url, method="GET", **settings):
            async with session.request(method, url, **settings) as answer:
                return answer.status, answer.headers, await answer.text()

        yield ask


# ------------------------------------------------------------------------------------------- its settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"host": "0.0.0.0"}, "plain http on 0.0.0.0"),
        ({"upstream": "http://plaid.example"}, "upstream is plain http"),
        ({"operations": ["/x"]}, "operations must be of"),
        ({"connections": 0}, "connections must be"),
        ({"upstream_connections": 0}, "connections must be"),
        ({"patience": -1}, "patience must be"),
        ({"drain": "soon"}, "drain must be"),
        ({"drain": float("inf")}, "drain must be"),
        ({"drain": True}, "drain must be"),
        ({"names": ["gateway.example:443"]}, "names must be names of hosts"),
        ({"names": [5]}, "names must be names of hosts"),
        ({"credentials": {"default": "secret"}}, "credentials must be Credentials"),
        ({"keys": ["plaid-gateway-key"]}, "each of keys must be a Key"),
    ],
)
async def test_settings_that_make_no_sense(settings, told):
    """A setting that makes no sense, or isn't safe, is refused by name, before anything listens."""
    settings = {"keys": [], "credentials": SETS} | settings
    with pytest.raises(ConfigurationError, match=told):
        Gateway(settings.pop("keys"), **settings)


async def test_credentials_of_the_environment(monkeypatch, upstream):
    """Without any, the set `default` is the environment's PLAID_CLIENT_ID and PLAID_SECRET."""
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    monkeypatch.setenv("PLAID_SECRET", "secret-of-the-owner")
    record, key = new_key("lender")
    async with Gateway([record], upstream=upstream.url) as gateway, calling(gateway, key) as client:
        assert (await client.relay.create([REPORT], "partner")).relay_token
    monkeypatch.delenv("PLAID_SECRET")
    with pytest.raises(ConfigurationError, match="PLAID_SECRET"):
        Gateway([record], upstream=upstream.url)


async def test_the_sandbox_unless_told():
    """Without an upstream it is for Plaid's sandbox, and its page says so."""
    gateway = Gateway([], credentials=SETS)
    assert repr(gateway) == "<Gateway to https://sandbox.plaid.com>"
    async with gateway, browsing() as ask:
        _, _, text = await ask(f"{gateway.url}/console/settings.json")
    told = json.loads(text)
    assert (told["environment"], told["operations"]) == ("sandbox", list(RELAY_OPERATIONS))


@pytest.mark.parametrize(
    "upstream", ["https://production.plaid.com:443", "https://\uff50roduction.plaid.com."]
)
async def test_the_page_recognizes_production(upstream):
    """The page says that calls go to production, however its address was typed."""
    async with Gateway([], credentials=SETS, upstream=upstream) as gateway, browsing() as ask:
        _, _, text = await ask(f"{gateway.url}/console/settings.json")
    assert json.loads(text)["environment"] == "production"


async def test_it_is_started_once():
    """Before it listens it has no address; it is started once; and to close it twice is harmless."""
    gateway = Gateway([], credentials=SETS, metrics_port=0)
    for name in ("url", "metrics_url"):
        with pytest.raises(RuntimeError, match="isn't started"):
            getattr(gateway, name)
    async with gateway:
        with pytest.raises(RuntimeError, match="started before"):
            await gateway.start()
        assert gateway.metrics_url.startswith("http://127.0.0.1:")
    await gateway.close()


async def test_a_port_that_is_taken(upstream):
    """Where its port, or that of its metrics, is taken, nothing of it is left open."""
    taken = int(upstream.url.rpartition(":")[2])
    for settings in ({"port": taken}, {"metrics_port": taken}):
        gateway = Gateway([], credentials=SETS, **settings)
        with pytest.raises(OSError, match="address already in use"):
            await gateway.start()


async def test_ipv6():
    """On IPv6's loopback its URL has brackets, and works."""
    async with Gateway([], credentials=SETS, host="::1") as gateway, browsing() as ask:
        assert gateway.url.startswith("http://[::1]:")
        assert (await ask(f"{gateway.url}/readyz"))[0] == 200
        assert (await ask(f"{gateway.url}/"))[0] == 200


async def test_tls(upstream):
    """With a certificate it speaks TLS, to callers and to an upstream with an authority of one's own."""
    authority = trustme.CA()
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(trusting)
    record, key = new_key("lender")
    settings = {"credentials": SETS, "ssl": server}
    async with (
        Gateway([record], upstream=upstream.url, **settings) as inner,
        Gateway([record], upstream=inner.url, upstream_ssl=trusting, **settings) as outer,
    ):
        assert inner.url.startswith("https://127.0.0.1:")
        async with calling(inner, key, ssl=trusting) as client:
            assert (await client.relay.create([REPORT], "partner")).relay_token
        async with calling(outer, key, ssl=trusting) as client:
            with pytest.raises(AuthenticationError, match="UNAUTHORIZED_KEY"):
                await client.relay.create([REPORT], "partner")
    assert upstream.counts == {"/credit/relay/create": 1}


async def test_other_names(upstream):
    """It answers to the names that it was told of, in whatever case, and to no other."""
    async with (
        Gateway([], credentials=SETS, allowed_hosts=["Relay.Lender.Example"]) as gateway,
        browsing() as ask,
    ):
        for host, status in (
            ("relay.lender.example", 200),
            ("RELAY.lender.example:443", 200),
            ("relay.lender.example.evil.example", 421),
            ("[relay", 421),
            ("", 421),
        ):
            assert (await ask(f"{gateway.url}/", headers={"Host": host}))[0] == status, host


# ----------------------------------------------------------------------------------------------- its keys


async def eventually(hold, seconds=60.0):
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not await hold():
        assert time.monotonic() < until, "it never came to hold"
        await asyncio.sleep(0.05)


async def test_keys_of_a_file(tmp_path, upstream):
    """A key that is added to the file is accepted, and one that is revoked no longer."""
    file = KeyFile(tmp_path / "keys.json")
    async with Gateway(file, upstream=upstream.url, credentials=SETS) as gateway:
        key = await asyncio.to_thread(file.add, "lender")
        async with calling(gateway, key) as client:

            async def passes():
                try:
                    await client.relay.create([REPORT], "partner")
                except AuthenticationError:
                    return False
                return True

            async def fails():
                return not await passes()

            await eventually(passes)
            await asyncio.to_thread(file.revoke, "lender")
            await eventually(fails)


async def test_a_file_that_others_may_read(tmp_path, upstream, caplog):
    """A file that others may read is an error at the start; later it admits nobody, and the gateway isn't ready."""
    file = KeyFile(tmp_path / "keys.json")
    key = await asyncio.to_thread(file.add, "lender")
    (tmp_path / "keys.json").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        await Gateway(file, credentials=SETS).start()
    (tmp_path / "keys.json").chmod(0o600)
    async with (
        Gateway(file, upstream=upstream.url, credentials=SETS) as gateway,
        calling(gateway, key) as client,
        browsing() as ask,
    ):
        await client.relay.create([REPORT], "partner")
        (tmp_path / "keys.json").chmod(0o644)

        async def not_ready():
            return (await ask(f"{gateway.url}/readyz"))[0] == 503

        await eventually(not_ready)
        with pytest.raises(AuthenticationError):
            await client.relay.create([REPORT], "another")
        assert (await ask(f"{gateway.url}/healthz"))[0] == 200
    assert "chmod 600" in caplog.text


async def test_a_rate(upstream):
    """A key's calls beyond its rate are refused with the time to wait; another key's aren't."""
    slow, slow_key = new_key("slow", rate=RateLimit(2, 60.0))
    free, free_key = new_key("free")
    once = RetryPolicy(attempts=1)
    async with (
        Gateway([slow, free], upstream=upstream.url, credentials=SETS) as gateway,
        calling(gateway, slow_key, retry=once) as client,
        calling(gateway, free_key, retry=once) as other,
    ):
        for partner in "ab":
            await client.relay.create([REPORT], partner)
        with pytest.raises(RateLimitError) as refused:
            await client.relay.create([REPORT], "c")
        await other.relay.create([REPORT], "c")
    assert 55 < refused.value.retry_after <= 60
    assert (refused.value.error_type, refused.value.error_code) == ("GATEWAY_ERROR", "RATE_LIMIT")
    assert refused.value.advice == "Wait as long as Retry-After says."
    assert upstream.counts == {"/credit/relay/create": 3}


async def test_a_set_that_is_missing(upstream):
    """A key whose set of credentials the gateway doesn't have is refused, and nothing is sent."""
    record, key = new_key("lender", credentials="another")
    async with (
        Gateway([record], upstream=upstream.url, credentials=SETS) as gateway,
        calling(gateway, key) as client,
    ):
        with pytest.raises(AuthenticationError, match="UNAUTHORIZED_CREDENTIALS"):
            await client.relay.create([REPORT], "partner")
    assert not upstream.counts


async def test_operations(upstream):
    """A key's operations are narrowed to the gateway's, and the other way round."""
    record, key = new_key("lender", operations=["/credit/relay/create", "/asset_report/get"])
    async with (
        Gateway(
            [record],
            upstream=upstream.url,
            credentials=SETS,
            operations={*ALL_OPERATIONS} - {"/asset_report/get"},
        ) as gateway,
        calling(gateway, key) as client,
    ):
        await client.relay.create([REPORT], "partner")
        for call in (client.asset_report.get(REPORT), client.relay.remove("credit-relay-sandbox-1")):
            with pytest.raises(AuthenticationError, match="UNAUTHORIZED_OPERATION"):
                await call
    assert upstream.counts == {"/credit/relay/create": 1}


async def test_a_source_of_credentials_that_fails(upstream):
    """Where the source of the credentials fails nothing was sent, and a caller may call again."""
    tries = []

    async def vault():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("canary-of-the-vault")
        return SETS["default"]

    record, key = new_key("lender")
    async with (
        Gateway([record], upstream=upstream.url, credentials={"default": vault}) as gateway,
        calling(gateway, key) as client,
    ):
        assert (await client.relay.create([REPORT], "partner")).relay_token
    assert len(tries) == 2
    assert upstream.counts == {"/credit/relay/create": 1}


# ------------------------------------------------------------------------------------ what it tells of itself


async def test_health_page_and_metrics(upstream):
    """It tells that it lives and is ready, serves its page with a strict policy, and counts calls for Prometheus."""
    record, key = new_key("lender")
    async with (
        Gateway([record], upstream=upstream.url, credentials=SETS, metrics_port=0) as gateway,
        calling(gateway, key) as client,
        browsing() as ask,
    ):
        await client.relay.create([REPORT], "partner")
        assert [(await ask(f"{gateway.url}/{name}"))[::2] for name in ("healthz", "readyz")] == [
            (200, "ok"),
            (200, "ready"),
        ]
        status, headers, text = await ask(f"{gateway.url}/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert text.startswith("<!doctype html>")
        assert (await ask(f"{gateway.url}/", method="HEAD"))[::2] == (200, "")
        status, _, text = await ask(gateway.metrics_url)
        line = 'caller="lender",error_code="",operation="/credit/relay/create",status="200"} 1.0'
        assert status == 200
        assert f"plaid_gateway_calls_total{{{line}" in text
        assert "plaid_gateway_upstream_in_flight 0.0" in text
        assert "plaid_gateway_connections 2.0" in text
        base = gateway.metrics_url.removesuffix("/metrics")
        assert (await ask(f"{base}/"))[0] == 404
        assert (await ask(gateway.metrics_url, headers={"Host": "evil.example"}))[0] == 421
        assert (await ask(f"{gateway.url}/metrics"))[0] == 404


def test_metrics_without_their_extra():
    """Without prometheus_client there are no metrics, and it says what to install; all else works."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from plaid_relay_async import Credentials\n"
        "from plaid_relay_async.gateway import Gateway\n"
        "sets = {'default': Credentials('owner', 'secret')}\n"
        "print(Gateway([], credentials=sets))\n"
        "Gateway([], credentials=sets, metrics_port=0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "<Gateway to https://sandbox.plaid.com>\n"
    assert "ConfigurationError" in done.stderr
    assert "pip install 'plaid_relay_async[gateway]'" in done.stderr


async def test_without_a_console():
    """Without its console there is no page, and health all the same."""
    async with Gateway([], credentials=SETS, console=False) as gateway, browsing() as ask:
        statuses = [
            (await ask(f"{gateway.url}{path}"))[0] for path in ("/", "/console/settings.json", "/healthz")
        ]
    assert statuses == [404, 404, 200]
    assert gateway.metrics_url is None


async def test_an_audit_line_for_each_call(upstream, caplog):
    """Each call leaves a line of JSON; an id in it that may be a token is hidden, and a long one cut."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    record, key = new_key("lender")
    partners = ["partner", "assets-sandbox-canary", key, "p" * 100]
    async with (
        Gateway([record], upstream=upstream.url, credentials=SETS) as gateway,
        calling(gateway, key) as client,
        browsing() as ask,
    ):
        made = [await client.relay.create([REPORT], partner) for partner in partners]
        await ask(f"{gateway.url}/credit/relay/create", method="POST")
        await ask(f"{gateway.url}/assets-sandbox-canary")
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name.endswith(".audit")]
    assert [line["partner"] for line in lines] == ["partner", "[hidden]", "[hidden]", "p" * 64, None, None]
    assert [line["request_id"] for line in lines[:4]] == [each.request_id for each in made]
    assert lines[0] == lines[0] | {
        "caller": "lender",
        "operation": "/credit/relay/create",
        "status": 200,
        "error_code": None,
        "delivered": True,
    }
    assert [(line["caller"], line["operation"], line["status"]) for line in lines[4:]] == [
        (None, "/credit/relay/create", 415),
        (None, None, 404),
    ]


class Broken(logging.Handler):
    def emit(self, record):
        raise RuntimeError("canary")


@contextlib.contextmanager
def breaking(name):
    """A gateway in which each line that this logger gets ends in a bug."""
    log, broken = logging.getLogger(name), Broken()
    log.addHandler(broken)
    try:
        yield
    finally:
        log.removeHandler(broken)


async def test_a_bug_is_unknown(caplog):
    """After a bug in the gateway the outcome of the call is unknown, and the log quotes nothing."""
    record, key = new_key("lender")
    caplog.set_level(logging.INFO)
    with breaking("plaid_relay_async.gateway.forward"):
        async with (
            Gateway([record], upstream="http://127.0.0.1:1", credentials=SETS) as gateway,
            calling(gateway, key) as client,
        ):
            with pytest.raises(OutcomeUnknownError) as unknown:
                await client.relay.create([REPORT], "partner")
    assert unknown.value.error_code == "INTERNAL_ERROR"
    assert "a request ended in RuntimeError" in caplog.text
    assert "canary" not in caplog.text


async def test_the_audit_of_a_bug(caplog):
    """The line of a call that ended in a bug has its status, its code and the id that the caller got."""
    record, key = new_key("lender")
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    with breaking("plaid_relay_async.gateway.forward"):
        async with (
            Gateway([record], upstream="http://127.0.0.1:1", credentials=SETS) as gateway,
            calling(gateway, key) as client,
        ):
            with pytest.raises(OutcomeUnknownError, match="INTERNAL_ERROR") as unknown:
                await client.relay.create([REPORT], "partner")
    (line,) = [json.loads(r.getMessage()) for r in caplog.records if r.name.endswith(".audit")]
    assert (line["status"], line["error_code"], line["delivered"]) == (500, "INTERNAL_ERROR", True)
    assert line["request_id"] == unknown.value.request_id


async def test_a_bug_after_the_response_has_begun(upstream, caplog):
    """The token has reached the caller, and the connection is closed."""
    record, key = new_key("lender")
    caplog.set_level(logging.INFO)
    with breaking("plaid_relay_async.gateway.audit"):
        async with (
            Gateway([record], upstream=upstream.url, credentials=SETS) as gateway,
            calling(gateway, key) as client,
        ):
            made = await client.relay.create([REPORT], "partner")
            assert made.relay_token == upstream.ledger[0]["relay_token"]
            while "a request ended in RuntimeError" not in caplog.text:
                await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------------------------- and how it ends


async def test_calls_in_flight_end(upstream):
    """When it closes, it isn't ready and takes no more, and a call in flight has its answer."""
    upstream.fail(Fault(latency=0.4, status=None))
    record, key = new_key("lender")
    gateway = Gateway([record], upstream=upstream.url, credentials=SETS)
    await gateway.start()
    async with calling(gateway, key) as client:
        call = asyncio.create_task(client.relay.create([REPORT], "partner"))
        while not upstream.counts:
            await asyncio.sleep(0.01)
        await gateway.close()
        assert (await call).relay_token == upstream.ledger[0]["relay_token"]
        with pytest.raises(NotSentError):
            await client.relay.create([REPORT], "another", retry=RetryPolicy(attempts=1))


async def test_an_audit_line_is_one_line_whatever_plaid_sends(upstream, caplog):
    """Control characters, half of a surrogate pair and a long string are escaped or cut, and the token arrives."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    record, key = new_key("lender")
    odd = ["\ud800", "a\0\r\nb", "\x1b[2J", "[/red]", "x" * 500_000]
    for number, text in enumerate(odd):
        body = {"relay_token": f"credit-relay-{number}", "request_id": text}
        upstream.fail(Fault(secondary_client_id=f"p{number}", status=200, body=body))
    async with (
        Gateway([record], upstream=upstream.url, credentials=SETS) as gateway,
        calling(gateway, key) as client,
    ):
        made = [await client.relay.create([REPORT], f"p{number}") for number in range(len(odd))]
    assert [each.relay_token for each in made] == [f"credit-relay-{number}" for number in range(len(odd))]
    assert [each.request_id for each in made] == odd
    lines = [r.getMessage() for r in caplog.records if r.name.endswith(".audit")]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert [json.loads(line)["request_id"] for line in lines] == [text[:64] for text in odd]


async def test_a_gateway_that_closes_in_a_cancelled_scope_drains(upstream):
    """A call in flight gets its response, though AnyIO cancels the close at each await."""
    upstream.fail(Fault(latency=0.3, when="after"))
    record, key = new_key("lender")
    gateway = Gateway([record], upstream=upstream.url, credentials=SETS, drain=30)
    await gateway.start()
    async with calling(gateway, key) as client:
        call = asyncio.create_task(client.relay.create([REPORT], "partner"))
        while not upstream.counts:
            await asyncio.sleep(0.01)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await gateway.close()
        assert (await call).relay_token == upstream.ledger[0]["relay_token"]


async def test_a_call_that_takes_too_long_is_cut(upstream, caplog):
    """A call that outlasts the drain time is cut, and its caller can't tell."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    upstream.fail(Fault(latency=30.0))
    record, key = new_key("lender")
    gateway = Gateway([record], upstream=upstream.url, credentials=SETS, drain=0.1)
    await gateway.start()
    async with calling(gateway, key) as client:
        call = asyncio.create_task(client.relay.create([REPORT], "partner"))
        while not upstream.counts:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        await gateway.close()
        assert time.monotonic() - began < 20  # not as long as the call
        with pytest.raises(OutcomeUnknownError):
            await call
    (line,) = [json.loads(r.getMessage()) for r in caplog.records if r.name.endswith(".audit")]
    assert (line["status"], line["delivered"]) == (None, False)
