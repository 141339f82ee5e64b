"""The gateway's server: its settings, its keys, its health and logs, and how it closes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
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
from plaid_relay_async.errors import AuthenticationError, NotSentError, OutcomeUnknownError, RateLimitError
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
async def client_of(gateway, key, **settings):
    """Yield the package's client of a gateway, with a key."""
    async with RelayClient(gateway_key=key, base_url=gateway.url, **{"retry": QUICK} | settings) as client:
        yield client


@contextlib.asynccontextmanager
async def http_requests():
    async with aiohttp.ClientSession() as session:

        async def ask(url, method="GET", **settings):
            async with session.request(method, url, **settings) as response:
                return response.status, response.headers, await response.text()

        yield ask


# ------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "plain http on 0.0.0.0"),
        ({"upstream": "http://plaid.example"}, "upstream is plain http"),
        ({"operations": ["/x"]}, "operations must be among"),
        ({"connections": 0}, "connections must be"),
        ({"upstream_connections": 0}, "connections must be"),
        ({"caller_timeout": -1}, "caller_timeout must be"),
        ({"drain": "soon"}, "drain must be"),
        ({"drain": float("inf")}, "drain must be"),
        ({"drain": True}, "drain must be"),
        ({"allowed_hosts": ["gateway.example:443"]}, "allowed_hosts must be host names"),
        ({"allowed_hosts": [5]}, "allowed_hosts must be host names"),
        ({"credentials": {"default": "secret"}}, "credentials must be Credentials"),
        ({"keys": ["plaid-gateway-key"]}, "each of keys must be a Key"),
    ],
)
async def test_invalid_settings_are_rejected(settings, message):
    """A setting that is invalid or unsafe raises an error that names it, before anything listens."""
    settings = {"keys": [], "credentials": SETS} | settings
    with pytest.raises(ConfigurationError, match=message):
        Gateway(settings.pop("keys"), **settings)


async def test_credentials_of_the_environment(monkeypatch, upstream):
    """By default, the set `default` is PLAID_CLIENT_ID and PLAID_SECRET of the environment."""
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    monkeypatch.setenv("PLAID_SECRET", "secret-of-the-owner")
    record, key = new_key("lender")
    async with Gateway([record], upstream=upstream.url) as gateway, client_of(gateway, key) as client:
        assert (await client.relay.create([REPORT], "partner")).relay_token
    monkeypatch.delenv("PLAID_SECRET")
    with pytest.raises(ConfigurationError, match="PLAID_SECRET"):
        Gateway([record], upstream=upstream.url)


async def test_the_default_upstream_is_the_sandbox():
    """The console's settings say so."""
    gateway = Gateway([], credentials=SETS)
    assert repr(gateway) == "<Gateway to https://sandbox.plaid.com>"
    async with gateway, http_requests() as ask:
        _, _, text = await ask(f"{gateway.url}/console/settings.json")
    message = json.loads(text)
    assert (message["environment"], message["operations"]) == ("sandbox", list(RELAY_OPERATIONS))


@pytest.mark.parametrize(
    "upstream", ["https://production.plaid.com:443", "https://\uff50roduction.plaid.com."]
)
async def test_the_page_recognizes_production(upstream):
    """The console's settings say that calls go to production, however its address is spelled."""
    async with Gateway([], credentials=SETS, upstream=upstream) as gateway, http_requests() as ask:
        _, _, text = await ask(f"{gateway.url}/console/settings.json")
    assert json.loads(text)["environment"] == "production"


async def test_a_gateway_starts_once():
    """Before the start it has no address, and closing it twice does no harm."""
    gateway = Gateway([], credentials=SETS, metrics_port=0)
    for name in ("url", "metrics_url"):
        with pytest.raises(RuntimeError, match="isn't started"):
            getattr(gateway, name)
    async with gateway:
        with pytest.raises(RuntimeError, match="started before"):
            await gateway.start()
        assert gateway.metrics_url.startswith("http://127.0.0.1:")
    await gateway.close()


async def test_a_port_in_use(upstream):
    """If its port or the port of its metrics is in use, nothing stays open."""
    used_port = int(upstream.url.rpartition(":")[2])
    for settings in ({"port": used_port}, {"metrics_port": used_port}):
        gateway = Gateway([], credentials=SETS, **settings)
        with pytest.raises(OSError, match="address already in use"):
            await gateway.start()


async def test_ipv6():
    """With an IPv6 address its URL has brackets, and works."""
    async with Gateway([], credentials=SETS, host="::1") as gateway, http_requests() as ask:
        assert gateway.url.startswith("http://[::1]:")
        assert (await ask(f"{gateway.url}/readyz"))[0] == 200
        assert (await ask(f"{gateway.url}/"))[0] == 200


async def test_tls(upstream):
    """With a certificate it speaks TLS, to callers and to an upstream with a private CA."""
    authority = trustme.CA()
    server, client_ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client_ssl)
    record, key = new_key("lender")
    settings = {"credentials": SETS, "ssl": server}
    async with (
        Gateway([record], upstream=upstream.url, **settings) as inner,
        Gateway([record], upstream=inner.url, upstream_ssl=client_ssl, **settings) as outer,
    ):
        assert inner.url.startswith("https://127.0.0.1:")
        async with client_of(inner, key, ssl=client_ssl) as client:
            assert (await client.relay.create([REPORT], "partner")).relay_token
        async with client_of(outer, key, ssl=client_ssl) as client:
            with pytest.raises(AuthenticationError, match="UNAUTHORIZED_KEY"):
                await client.relay.create([REPORT], "partner")
    assert upstream.counts == {"/credit/relay/create": 1}


async def test_allowed_hosts(upstream):
    """It accepts its allowed hosts in any case, and no others."""
    async with (
        Gateway([], credentials=SETS, allowed_hosts=["Relay.Lender.Example"]) as gateway,
        http_requests() as ask,
    ):
        for host, status in (
            ("relay.lender.example", 200),
            ("RELAY.lender.example:443", 200),
            ("relay.lender.example.evil.example", 421),
            ("[relay", 421),
            ("", 421),
        ):
            assert (await ask(f"{gateway.url}/", headers={"Host": host}))[0] == status, host


# ----------------------------------------------------------------------------------------------- keys


async def eventually(hold, seconds=60.0):
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not await hold():
        assert time.monotonic() < until, "it never came to hold"
        await asyncio.sleep(0.05)


async def test_keys_of_a_file(tmp_path, upstream):
    """A key that is added to the file is accepted, and after it is revoked it is rejected."""
    file = KeyFile(tmp_path / "keys.json")
    async with Gateway(file, upstream=upstream.url, credentials=SETS) as gateway:
        key = await asyncio.to_thread(file.add, "lender")
        async with client_of(gateway, key) as client:

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


async def test_a_file_with_open_permissions(tmp_path, upstream, caplog):
    """It is an error at the start; later no caller is admitted, and the gateway isn't ready."""
    file = KeyFile(tmp_path / "keys.json")
    key = await asyncio.to_thread(file.add, "lender")
    (tmp_path / "keys.json").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        await Gateway(file, credentials=SETS).start()
    (tmp_path / "keys.json").chmod(0o600)
    async with (
        Gateway(file, upstream=upstream.url, credentials=SETS) as gateway,
        client_of(gateway, key) as client,
        http_requests() as ask,
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


async def test_a_rate_limit(upstream):
    """Calls beyond a key's limit get a 429 with Retry-After; another key's calls don't."""
    slow, slow_key = new_key("slow", rate=RateLimit(2, 60.0))
    free, free_key = new_key("free")
    once = RetryPolicy(attempts=1)
    async with (
        Gateway([slow, free], upstream=upstream.url, credentials=SETS) as gateway,
        client_of(gateway, slow_key, retry=once) as client,
        client_of(gateway, free_key, retry=once) as other,
    ):
        for partner in "ab":
            await client.relay.create([REPORT], partner)
        with pytest.raises(RateLimitError) as refused:
            await client.relay.create([REPORT], "c")
        await other.relay.create([REPORT], "c")
    assert 55 < refused.value.retry_after <= 60
    assert (refused.value.error_type, refused.value.error_code) == ("GATEWAY_ERROR", "RATE_LIMIT")
    assert refused.value.advice == "Nothing was executed. Wait as long as Retry-After says."
    assert upstream.counts == {"/credit/relay/create": 3}


async def test_a_missing_set_of_credentials(upstream):
    """A key whose set of credentials is missing is rejected, and nothing is sent."""
    record, key = new_key("lender", credentials="another")
    async with (
        Gateway([record], upstream=upstream.url, credentials=SETS) as gateway,
        client_of(gateway, key) as client,
    ):
        with pytest.raises(AuthenticationError, match="UNAUTHORIZED_CREDENTIALS"):
            await client.relay.create([REPORT], "partner")
    assert not upstream.counts


async def test_operations_of_key_and_gateway(upstream):
    """A call needs both a key and a gateway that allow its operation."""
    record, key = new_key("lender", operations=["/credit/relay/create", "/asset_report/get"])
    async with (
        Gateway(
            [record],
            upstream=upstream.url,
            credentials=SETS,
            operations={*ALL_OPERATIONS} - {"/asset_report/get"},
        ) as gateway,
        client_of(gateway, key) as client,
    ):
        await client.relay.create([REPORT], "partner")
        for call in (client.asset_report.get(REPORT), client.relay.remove("credit-relay-sandbox-1")):
            with pytest.raises(AuthenticationError, match="UNAUTHORIZED_OPERATION"):
                await call
    assert upstream.counts == {"/credit/relay/create": 1}


async def test_a_failing_source_of_credentials(upstream):
    """If the source of the credentials fails, nothing was sent, and the call can be repeated."""
    tries = []

    async def vault():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("canary-of-the-vault")
        return SETS["default"]

    record, key = new_key("lender")
    async with (
        Gateway([record], upstream=upstream.url, credentials={"default": vault}) as gateway,
        client_of(gateway, key) as client,
    ):
        assert (await client.relay.create([REPORT], "partner")).relay_token
    assert len(tries) == 2
    assert upstream.counts == {"/credit/relay/create": 1}


# ------------------------------------------------------------------------------------ health, page, metrics and audit log


async def test_health_page_and_metrics(upstream):
    """It reports its health, serves its page with a strict policy, and counts calls for Prometheus."""
    record, key = new_key("lender")
    async with (
        Gateway([record], upstream=upstream.url, credentials=SETS, metrics_port=0) as gateway,
        client_of(gateway, key) as client,
        http_requests() as ask,
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
        assert f"plaid_gateway_operations_total{{{line}" in text
        assert "plaid_gateway_attempts_in_flight 0.0" in text
        assert "plaid_gateway_connections 2.0" in text
        base = gateway.metrics_url.removesuffix("/metrics")
        assert (await ask(f"{base}/"))[0] == 404
        assert (await ask(gateway.metrics_url, headers={"Host": "evil.example"}))[0] == 421
        assert (await ask(f"{gateway.url}/metrics"))[0] == 404


def test_metrics_need_the_extra():
    """Without prometheus_client the error says what to install; a gateway without metrics works."""
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
    """Without the console there is no page, but the health checks work."""
    async with Gateway([], credentials=SETS, console=False) as gateway, http_requests() as ask:
        statuses = [
            (await ask(f"{gateway.url}{path}"))[0] for path in ("/", "/console/settings.json", "/healthz")
        ]
    assert statuses == [404, 404, 200]
    assert gateway.metrics_url is None


async def test_an_audit_line_for_each_call(upstream, caplog):
    """Each call leaves a line of JSON, in which an identifier that may be a token is redacted, and a long one is shortened."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    record, key = new_key("lender")
    partners = ["partner", "assets-sandbox-canary", key, "p" * 100]
    async with (
        Gateway([record], upstream=upstream.url, credentials=SETS) as gateway,
        client_of(gateway, key) as client,
        http_requests() as ask,
    ):
        created = [await client.relay.create([REPORT], partner) for partner in partners]
        await ask(f"{gateway.url}/credit/relay/create", method="POST")
        await ask(f"{gateway.url}/assets-sandbox-canary")
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name.endswith(".audit")]
    assert [line["partner"] for line in lines] == ["partner", "[hidden]", "[hidden]", "p" * 64, None, None]
    assert [line["request_id"] for line in lines[:4]] == [each.request_id for each in created]
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


class FailingHandler(logging.Handler):
    def emit(self, record):
        raise RuntimeError("canary")


@contextlib.contextmanager
def failing_logger(name):
    """Let each record of this logger raise an unexpected error."""
    log, broken = logging.getLogger(name), FailingHandler()
    log.addHandler(broken)
    try:
        yield
    finally:
        log.removeHandler(broken)


async def test_an_unexpected_error_is_unknown(caplog):
    """After an unexpected error the outcome of a creation is unknown, and the log doesn't quote the error."""
    record, key = new_key("lender")
    caplog.set_level(logging.INFO)
    with failing_logger("plaid_relay_async.gateway.forward"):
        async with (
            Gateway([record], upstream="http://127.0.0.1:1", credentials=SETS) as gateway,
            client_of(gateway, key) as client,
        ):
            with pytest.raises(OutcomeUnknownError) as unknown:
                await client.relay.create([REPORT], "partner")
    assert unknown.value.error_code == "INTERNAL_ERROR"
    assert "a request failed with RuntimeError" in caplog.text
    assert "canary" not in caplog.text


async def test_the_audit_line_of_an_unexpected_error(caplog):
    """It has the status, the code and the request ID that the caller got."""
    record, key = new_key("lender")
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    with failing_logger("plaid_relay_async.gateway.forward"):
        async with (
            Gateway([record], upstream="http://127.0.0.1:1", credentials=SETS) as gateway,
            client_of(gateway, key) as client,
        ):
            with pytest.raises(OutcomeUnknownError, match="INTERNAL_ERROR") as unknown:
                await client.relay.create([REPORT], "partner")
    (line,) = [json.loads(r.getMessage()) for r in caplog.records if r.name.endswith(".audit")]
    assert (line["status"], line["error_code"], line["delivered"]) == (500, "INTERNAL_ERROR", True)
    assert line["request_id"] == unknown.value.request_id


async def test_an_unexpected_error_after_the_response_has_begun(upstream, caplog):
    """The token has reached the caller, and the connection is closed."""
    record, key = new_key("lender")
    caplog.set_level(logging.INFO)
    with failing_logger("plaid_relay_async.gateway.audit"):
        async with (
            Gateway([record], upstream=upstream.url, credentials=SETS) as gateway,
            client_of(gateway, key) as client,
        ):
            created = await client.relay.create([REPORT], "partner")
            assert created.relay_token == upstream.ledger[0]["relay_token"]
            while "a request failed with RuntimeError" not in caplog.text:
                await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------------------------- closing


async def test_closing_waits_for_calls_in_flight(upstream):
    """A call in flight gets its response, new calls aren't accepted, and `close` returns that all calls ended."""
    upstream.fail(Fault(latency=0.4, status=None))
    record, key = new_key("lender")
    gateway = Gateway([record], upstream=upstream.url, credentials=SETS)
    await gateway.start()
    async with client_of(gateway, key) as client:
        call = asyncio.create_task(client.relay.create([REPORT], "partner"))
        while not upstream.counts:
            await asyncio.sleep(0.01)
        assert await gateway.close()
        assert (await call).relay_token == upstream.ledger[0]["relay_token"]
        with pytest.raises(NotSentError):
            await client.relay.create([REPORT], "another", retry=RetryPolicy(attempts=1))


async def test_an_audit_line_is_one_line_whatever_plaid_sends(upstream, caplog):
    """A text in place of a request ID is hidden, a long one is shortened, and the token arrives."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    record, key = new_key("lender")
    odd = ["\ud800", "a\0\r\nb", "\x1b[2J", "[/red]", "x" * 500_000]
    for number, text in enumerate(odd):
        body = {"relay_token": f"credit-relay-{number}", "request_id": text}
        upstream.fail(Fault(secondary_client_id=f"p{number}", status=200, body=body))
    async with (
        Gateway([record], upstream=upstream.url, credentials=SETS) as gateway,
        client_of(gateway, key) as client,
    ):
        created = [await client.relay.create([REPORT], f"p{number}") for number in range(len(odd))]
    assert [each.relay_token for each in created] == [f"credit-relay-{number}" for number in range(len(odd))]
    assert [each.request_id for each in created] == odd
    lines = [r.getMessage() for r in caplog.records if r.name.endswith(".audit")]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert [json.loads(line)["request_id"] for line in lines] == ["[hidden]"] * 4 + ["x" * 64]


async def test_closing_in_a_cancelled_scope_drains(upstream):
    """A call in flight gets its response although AnyIO cancels the close at each await."""
    upstream.fail(Fault(latency=0.3, when="after"))
    record, key = new_key("lender")
    gateway = Gateway([record], upstream=upstream.url, credentials=SETS, drain=30)
    await gateway.start()
    async with client_of(gateway, key) as client:
        call = asyncio.create_task(client.relay.create([REPORT], "partner"))
        while not upstream.counts:
            await asyncio.sleep(0.01)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await gateway.close()
        assert (await call).relay_token == upstream.ledger[0]["relay_token"]


async def test_a_call_that_outlasts_the_drain_is_cut_off(upstream, caplog):
    """Its outcome is unknown to the caller."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    upstream.fail(Fault(latency=30.0))
    record, key = new_key("lender")
    gateway = Gateway([record], upstream=upstream.url, credentials=SETS, drain=0.1)
    await gateway.start()
    async with client_of(gateway, key) as client:
        call = asyncio.create_task(client.relay.create([REPORT], "partner"))
        while not upstream.counts:
            await asyncio.sleep(0.01)
        started_at = time.monotonic()
        assert await gateway.close() is False
        assert time.monotonic() - started_at < 20  # less than the call takes
        assert await gateway.close() is False  # a repetition returns the same
        with pytest.raises(OutcomeUnknownError):
            await call
    (line,) = [json.loads(r.getMessage()) for r in caplog.records if r.name.endswith(".audit")]
    assert (line["status"], line["delivered"]) == (None, False)


async def test_a_connection_that_arrives_while_the_gateway_closes(upstream, caplog):
    """A caller that connects in the iteration of the event loop in which the gateway stops causes no error."""
    record, _ = new_key("one")
    gateway = Gateway([record], upstream=upstream.url, credentials=SETS)
    await gateway.start()
    await asyncio.sleep(0.01)  # it waits for callers
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop = asyncio.get_running_loop()
        accepting = [
            task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Listener._accept_loop"
        ]
        assert len(accepting) == 1
        loop.add_reader(ours, lambda: [task.cancel() for task in accepting])
        theirs.send(b"x")
        with socket.create_connection((host, int(port))):  # the next iteration finds both sockets readable
            await asyncio.wait(accepting)
            loop.remove_reader(ours)
            await gateway.close()
    assert not [each.getMessage() for each in caplog.records if each.name == "asyncio"]
