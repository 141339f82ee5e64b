"""Canaries: the upstream's secrets, the gateway's keys and all tokens show nowhere but where they belong."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import pickle
import re
import sys
import traceback
from pathlib import Path

import aiohttp
import pytest
from canaries import package_frames
from gateway_setup import UPSTREAM_CREDENTIALS, running_gateway
from processes import open_files
from raw_http import CREATE, CREATE_BODY, GET, REMOVE, build_request, build_response, raw_connection

from plaid_relay_async import Credentials, PlaidRelayError, RelayClient, RetryPolicy, Timeouts
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.gateway import Gateway, Key, KeyFile, new_key
from plaid_relay_async.simulator import Fault, Simulator

REPORT = "assets-sandbox-canary-77"
PLANTED = re.compile(r"canary-[\w-]+|plaid-gateway-[\w-]{8,}|assets-sandbox-\S+|credit-relay-sandbox-[\w-]+")


def assert_clean(text: str) -> None:
    found = PLANTED.search(text)
    assert found is None, f"a canary got out: …{text[max(0, found.start() - 300) : found.end()]}"


@pytest.fixture
def everything_said(every_log):
    """All that any logger says at DEBUG, asyncio's debug mode included; it may hold no canary in the end."""
    for name in (
        "plaid_relay_async.gateway",
        "plaid_relay_async.gateway.audit",
        "aiohttp.server",
        "aiohttp.web",
    ):
        every_log.set_level(logging.DEBUG, logger=name)
    yield every_log
    said = "\n".join(logging.Formatter().format(record) for record in every_log.records)
    assert_clean(said)
    for record in every_log.records:
        assert_clean(repr(record.args))
        if record.exc_info and record.exc_info[1] is not None:
            assert_clean(package_frames(record.exc_info[1]))


PROVOCATIONS = {
    "a good call": lambda key: build_request(key=key),
    "a bad key": lambda key: build_request(key=key[:-2] + "zz"),
    "a bad key in a header": lambda key: build_request(CREATE, CREATE_BODY, f"PLAID-SECRET: {key}x"),
    "a bad key in the body": lambda key: build_request(CREATE, CREATE_BODY | {"secret": f"{key}x"}),
    "a key in the path": lambda key: build_request(f"/{key}/credit/relay/create?secret={key}", key=key),
    "a key as the method": lambda key: build_request(key=key, method=key.upper()),
    "a key as a broken header": lambda key: build_request(CREATE, CREATE_BODY, f"{key}\0{key}: x", key=key),
    "a key as a header's name": lambda key: build_request(CREATE, CREATE_BODY, f"{key} {key}", key=key),
    "a key in Host": lambda key: build_request(key=key, host=key),
    "a key in Origin": lambda key: build_request(
        CREATE, CREATE_BODY, f"Origin: https://{key}.example", key=key
    ),
    "a key as Content-Type": lambda key: build_request(key=key, content_type=f"application/{key}"),
    "a key as Content-Length": lambda key: build_request(
        CREATE, CREATE_BODY, f"Content-Length: {key}", key=key
    ),
    "a key as Transfer-Encoding": lambda key: build_request(
        CREATE, CREATE_BODY, f"Transfer-Encoding: {key}", key=key
    ),
    "a key as the partner": lambda key: build_request(
        CREATE, CREATE_BODY | {"secondary_client_id": key}, key=key
    ),
    "a token as the partner": lambda key: build_request(
        CREATE, CREATE_BODY | {"secondary_client_id": REPORT}, key=key
    ),
    "a key in broken JSON": lambda key: build_request(CREATE, f'{{"secret": "{key}"'.encode(), key=key),
    "a key twice in JSON": lambda key: build_request(CREATE, f'{{"{key}": 1, "{key}": 2}}'.encode(), key=key),
    "a key as JSON's constant": lambda key: build_request(CREATE, f'{{"a": {key}}}'.encode(), key=key),
    "a key as User-Agent": lambda key: build_request(CREATE, CREATE_BODY, f"User-Agent: {key}", key=key),
    "a key as Expect": lambda key: build_request(CREATE, CREATE_BODY, f"Expect: {key}", key=key),
    "a key as Upgrade": lambda key: build_request(
        CREATE, CREATE_BODY, f"Upgrade: {key}", "Connection: upgrade", key=key
    ),
    "a key and no HTTP": lambda key: f"{key} {key}\r\n\r\n".encode(),
    "a key as a chunk": lambda key: (
        build_request(CREATE, b"", "Transfer-Encoding: chunked", key=key).replace(
            b"Content-Length: 0\r\n", b""
        )
        + f"{key}\r\n".encode()
    ),
    "a key as a page": lambda key: build_request(f"/console/{key}", b"", method="GET", content_type=None),
}


@pytest.mark.parametrize("provocation", PROVOCATIONS.values(), ids=PROVOCATIONS)
async def test_no_request_gets_a_secret_into_a_log_or_an_answer(everything_said, provocation):
    """Wherever a caller puts its key or a token: no log has it, and no answer of the gateway's own quotes it."""
    asyncio.get_running_loop().set_debug(True)
    async with running_gateway(patience=0.5) as held:
        answers = await held.exchange(provocation(held.keys["lender"]))
        for answer in answers:
            assert_clean(str(answer.headers))
            if answer.error_code is not None:
                assert_clean(answer.body.decode())
        held.upstream.requests.clear()


ECHO = {"error_type": "API_ERROR", "error_code": "X", "error_message": f"{REPORT} credit-relay-sandbox-x"}
FAULTS = {
    "400": {"status": 400, "body": ECHO},
    "500": {"status": 500, "body": ECHO, "when": "after"},
    "302": {"status": 302, "headers": {"Location": f"http://127.0.0.1:9/{REPORT}"}},
    "a token as the request id": {"status": 400, "body": ECHO | {"request_id": REPORT}},
    "a token as the header's request id": {"status": 200, "headers": {"Plaid-Request-Id": REPORT}},
    "closed": {"close": True, "when": "after"},
    "cut": {"truncate": 30},
    "silent": {"stall": 30, "when": "after"},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("path", [CREATE, GET, REMOVE])
async def test_no_fault_gets_a_secret_into_a_log(everything_said, fault, path):
    """Whatever the upstream does: the logs, our client's error and its traceback are clean."""
    asyncio.get_running_loop().set_debug(True)
    who = Credentials("owner", "canary-upstream-0123456789")
    key, secret = new_key("one")
    options = {
        "credentials": {"default": who},
        "timeouts": Timeouts(read=0.2, slow_read=0.2),
        "metrics_port": 0,
    }
    pytest.importorskip("prometheus_client")
    async with Simulator(clients={"owner": who.secret}, reports=[REPORT]) as plaid:
        async with (
            Gateway([key], upstream=plaid.url, **options) as gateway,
            RelayClient(gateway_key=secret, base_url=gateway.url, retry=RetryPolicy(attempts=1)) as client,
        ):
            made = await client.relay.create([REPORT], "owner")
            plaid.fail(Fault(path=path, **fault))
            call = {
                CREATE: lambda: client.relay.create([REPORT], "p"),
                GET: lambda: client.relay.get(made.relay_token),
                REMOVE: lambda: client.relay.remove(made.relay_token),
            }[path]
            with pytest.raises(PlaidRelayError) as caught:
                await call()
            error = caught.value
            assert_clean(f"{error} {error!r} {error.args} {vars(error)}")
            assert_clean("".join(traceback.format_exception(error)))
            assert_clean(package_frames(error))
            async with aiohttp.ClientSession() as session, session.get(gateway.metrics_url) as metrics:
                said = await metrics.text()
            assert "plaid_gateway_calls_total" in said
            assert_clean(said)
            assert_clean(f"{gateway!r} {key!r}")


async def test_an_audit_line_is_told_for_each_call_and_is_clean(everything_said):
    """Who, which operation, which partner, what came of it, how long it took; and no more."""
    async with running_gateway() as held:
        await held.call()
        await held.call(CREATE, "bound", body=CREATE_BODY | {"secondary_client_id": "other"})
        await held.exchange_one(build_request(key="plaid-gateway-of-nobody"))
        await held.call("/nowhere")
        await held.call(CREATE, body=CREATE_BODY | {"secondary_client_id": held.keys["lender"]})
        await held.call(CREATE, body=CREATE_BODY | {"secondary_client_id": 7})
        await held.call(CREATE, body=CREATE_BODY | {"secondary_client_id": 'x\n{"caller": "forged"}'})
        held.upstream.says, held.upstream.then = (lambda _: []), "close"
        await held.call()
        held.upstream.requests.clear()  # a partner goes on as it was named
        lines = [
            record.getMessage()
            for record in everything_said.records
            if record.name == "plaid_relay_async.gateway.audit"
        ]
    assert not any("\n" in each for each in lines)
    told = [json.loads(each) for each in lines]
    names = [
        "time",
        "caller",
        "operation",
        "partner",
        "status",
        "error_code",
        "request_id",
        "seconds",
        "delivered",
    ]
    assert all(list(each) == names for each in told)
    shown = [
        (each["caller"], each["operation"], each["partner"], each["status"], each["error_code"])
        for each in told
    ]
    assert shown[:6] == [
        ("lender", CREATE, "p1", 200, None),
        ("bound", CREATE, "other", 403, "PARTNER_NOT_ALLOWED"),
        (None, CREATE, None, 401, "UNAUTHORIZED_KEY"),
        (None, None, None, 404, "NOT_FOUND"),
        ("lender", CREATE, "[hidden]", 200, None),
        ("lender", CREATE, None, 200, None),
    ]
    assert shown[7] == ("lender", CREATE, "p1", 502, "UPSTREAM_LOST")
    assert told[0]["request_id"] == "request1"
    assert all(each["request_id"].startswith("gateway-") for each in told[1:4])
    assert all(each["delivered"] and 0 <= each["seconds"] < 5 for each in told)


async def test_what_is_public_can_be_printed():
    """Gateways, keys, key files and their parts show neither key, nor digest, nor secret."""
    key, secret = new_key("one")
    async with running_gateway(metrics_port=0) as held:
        things = [held.gateway, key, vars(held.gateway), *vars(held.gateway).values()]
        shown = " ".join(map(repr, things)) + " ".join(map(str, things))
        assert_clean(shown)
        for known in (
            secret,
            key.digest,
            *held.keys.values(),
            *(each.secret for each in UPSTREAM_CREDENTIALS.values()),
        ):
            assert known not in shown


@pytest.mark.parametrize(
    "mistake",
    [
        lambda secret: Gateway([], upstream=f"http://a:{secret}@127.0.0.1"),
        lambda secret: Gateway([], upstream=f"ftp://{secret}"),
        lambda secret: Gateway([], credentials={"default": secret}),
        lambda secret: Gateway([], credentials={"default": ("owner", secret)}),
        lambda secret: Gateway([], credentials={"default": Credentials("a", f"{secret} ")}),
        lambda secret: Gateway([secret]),
        lambda secret: new_key(secret * 3),
        lambda secret: new_key("a", partners=secret),
        lambda secret: Key("a", secret),
    ],
)
def test_a_mistake_in_the_settings_shows_no_secret(mistake):
    """What is refused is named, and its value isn't shown: not by the text, nor by the locals of our frames."""
    try:
        mistake("canary-secret-0123456789")
    except (ConfigurationError, TypeError) as error:
        assert_clean("".join(traceback.format_exception(error)).replace('mistake("canary', ""))
        assert_clean(package_frames(error))


def test_a_key_record_holds_no_key(tmp_path):
    """Neither the record, pickled or not, nor the file holds the key that was given out."""
    key, secret = new_key("one")
    random = secret.removeprefix("plaid-gateway-")
    assert len(random) == 43
    with contextlib.suppress(TypeError, pickle.PicklingError):
        assert random.encode() not in pickle.dumps(key)
    file = KeyFile(tmp_path / "keys.json")
    shown = file.add("two")
    assert shown.removeprefix("plaid-gateway-") not in file.path.read_text()
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert_clean(repr(file.read()))


SERVED = """
import asyncio, sys
from pathlib import Path
from plaid_relay_async.gateway import Gateway, KeyFile
async def main(upstream, keys):
    async with Gateway(KeyFile(Path(keys)), upstream=upstream) as gateway:
        print(gateway.url, flush=True)
        await asyncio.wait_for(asyncio.to_thread(sys.stdin.read), 60)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.may_block
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_process_shows_no_secret_to_its_neighbours(tmp_path):
    """Arguments, title, open files and what it writes hold no secret; it has no children that might."""
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("one")
    async with Simulator(clients={"owner": "canary-upstream-0123456789"}, reports=[REPORT]) as plaid:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-X", "dev", "-c", SERVED, plaid.url, str(file.path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"PLAID_CLIENT_ID": "owner", "PLAID_SECRET": "canary-upstream-0123456789"},
        )
        try:
            url = (await process.stdout.readline()).decode().strip()
            async with RelayClient(gateway_key=key, base_url=url) as client:
                assert (await client.relay.create([REPORT], "p")).relay_token
            about = Path(f"/proc/{process.pid}")
            assert_clean((about / "cmdline").read_text() + (about / "comm").read_text())
            assert not (about / f"task/{process.pid}/children").read_text().split()
            assert_clean(" ".join(open_files(process.pid)))
        finally:
            process.stdin.close()
            said, _ = await process.communicate()
        assert process.returncode == 0
        assert_clean(said.decode())
    written = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert all(each.stat().st_mode & 0o077 == 0 for each in written)


async def test_the_tracebacks_of_a_gateway_that_is_cut_off_are_clean(everything_said):
    """Calls that end with the gateway's closing leave no secret in any traceback, nor in asyncio's own log."""
    asyncio.get_running_loop().set_debug(True)
    errors = io.StringIO()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.write(f"{context!r}\n"))
    async with running_gateway() as held:
        async with contextlib.AsyncExitStack() as stack:
            key, secret = new_key("two")
            held.upstream.then, held.upstream.says = "stall", lambda _: []
            other = Gateway([key], upstream=held.upstream.url, credentials=UPSTREAM_CREDENTIALS, drain=0.1)
            await other.start()
            for _ in range(3):
                opened = await stack.enter_async_context(raw_connection(other.url))
                await opened.send(build_request(key=secret))
            await asyncio.sleep(0.1)
            tasks = "".join(map(repr, asyncio.all_tasks()))
            await other.close()
        held.upstream.hang_up()
        await asyncio.sleep(0.05)
    assert_clean(errors.getvalue())
    assert_clean(tasks)


async def test_a_token_of_an_answer_is_in_the_answer_alone(everything_said):
    """A relay token goes to its caller, and into nothing else."""
    async with running_gateway() as held:
        held.upstream.says = lambda _: [
            build_response(200, b'{"relay_token": "credit-relay-sandbox-canary"}')
        ]
        assert (await held.call()).json["relay_token"] == "credit-relay-sandbox-canary"
