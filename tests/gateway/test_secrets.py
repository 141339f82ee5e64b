"""Planted secrets: the upstream's secrets, the gateway's keys and tokens appear only where they belong."""

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
SECRET_PATTERN = re.compile(
    r"canary-[\w-]+|plaid-gateway-[\w-]{8,}|assets-sandbox-\S+|credit-relay-sandbox-[\w-]+"
)


def assert_no_secret(text: str) -> None:
    match = SECRET_PATTERN.search(text)
    assert match is None, f"a secret leaked: …{text[max(0, match.start() - 300) : match.end()]}"


@pytest.fixture
def all_logs(every_log):
    """Capture all logs at DEBUG, with asyncio's debug mode, and check at the end that they contain no secret."""
    for name in (
        "plaid_relay_async.gateway",
        "plaid_relay_async.gateway.audit",
        "aiohttp.server",
        "aiohttp.web",
    ):
        every_log.set_level(logging.DEBUG, logger=name)
    yield every_log
    output = "\n".join(logging.Formatter().format(record) for record in every_log.records)
    assert_no_secret(output)
    for record in every_log.records:
        assert_no_secret(repr(record.args))
        if record.exc_info and record.exc_info[1] is not None:
            assert_no_secret(package_frames(record.exc_info[1]))


REQUESTS = {
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


@pytest.mark.parametrize("provocation", REQUESTS.values(), ids=REQUESTS)
async def test_no_request_puts_a_secret_into_a_log_or_a_response(all_logs, provocation):
    """Wherever a caller puts its key or a token, no log and no error response contains it."""
    asyncio.get_running_loop().set_debug(True)
    async with running_gateway(caller_timeout=0.5) as setup:
        responses = await setup.exchange(provocation(setup.keys["lender"]))
        for response in responses:
            assert_no_secret(str(response.headers))
            if response.error_code is not None:
                assert_no_secret(response.body.decode())
        setup.upstream.requests.clear()


ECHO = {"error_type": "API_ERROR", "error_code": "X", "error_message": f"{REPORT} credit-relay-sandbox-x"}
FAULTS = {
    "400": {"status": 400, "body": ECHO},
    "500": {"status": 500, "body": ECHO, "when": "after"},
    "302": {"status": 302, "headers": {"Location": f"http://127.0.0.1:9/{REPORT}"}},
    "a token as the request ID": {"status": 400, "body": ECHO | {"request_id": REPORT}},
    "a token as the header's request ID": {"status": 200, "headers": {"Plaid-Request-Id": REPORT}},
    "closed": {"close": True, "when": "after"},
    "cut": {"truncate": 30},
    "silent": {"stall": 30, "when": "after"},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("path", [CREATE, GET, REMOVE])
async def test_no_fault_puts_a_secret_into_a_log(all_logs, fault, path):
    """Whatever the upstream does, the logs, the client's error and its traceback contain no secret."""
    asyncio.get_running_loop().set_debug(True)
    credentials = Credentials("owner", "canary-upstream-0123456789")
    key, secret = new_key("one")
    options = {
        "credentials": {"default": credentials},
        "timeouts": Timeouts(read=0.2, slow_read=0.2),
        "metrics_port": 0,
    }
    pytest.importorskip("prometheus_client")
    async with Simulator(clients={"owner": credentials.secret}, reports=[REPORT]) as plaid:
        async with (
            Gateway([key], upstream=plaid.url, **options) as gateway,
            RelayClient(gateway_key=secret, base_url=gateway.url, retry=RetryPolicy(attempts=1)) as client,
        ):
            created = await client.relay.create([REPORT], "owner")
            plaid.fail(Fault(path=path, **fault))
            call = {
                CREATE: lambda: client.relay.create([REPORT], "p"),
                GET: lambda: client.relay.get(created.relay_token),
                REMOVE: lambda: client.relay.remove(created.relay_token),
            }[path]
            with pytest.raises(PlaidRelayError) as caught:
                await call()
            error = caught.value
            assert_no_secret(f"{error} {error!r} {error.args} {vars(error)}")
            assert_no_secret("".join(traceback.format_exception(error)))
            assert_no_secret(package_frames(error))
            async with aiohttp.ClientSession() as session, session.get(gateway.metrics_url) as metrics:
                output = await metrics.text()
            assert "plaid_gateway_operations_total" in output
            assert_no_secret(output)
            assert_no_secret(f"{gateway!r} {key!r}")


async def test_audit_lines_contain_no_secret(all_logs):
    """A line has the caller, the operation, the partner, the result and the duration."""
    async with running_gateway() as setup:
        await setup.call()
        await setup.call(CREATE, "bound", body=CREATE_BODY | {"secondary_client_id": "other"})
        await setup.exchange_one(build_request(key="plaid-gateway-unknown"))
        await setup.call("/nowhere")
        await setup.call(CREATE, body=CREATE_BODY | {"secondary_client_id": setup.keys["lender"]})
        await setup.call(CREATE, body=CREATE_BODY | {"secondary_client_id": 7})
        await setup.call(CREATE, body=CREATE_BODY | {"secondary_client_id": 'x\n{"caller": "forged"}'})
        setup.upstream.respond, setup.upstream.ending = (lambda _: []), "close"
        await setup.call()
        setup.upstream.requests.clear()  # the partner's name was forwarded unchanged
        lines = [
            record.getMessage()
            for record in all_logs.records
            if record.name == "plaid_relay_async.gateway.audit"
        ]
    assert not any("\n" in each for each in lines)
    records = [json.loads(each) for each in lines]
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
    assert all(list(each) == names for each in records)
    printed = [
        (each["caller"], each["operation"], each["partner"], each["status"], each["error_code"])
        for each in records
    ]
    assert printed[:6] == [
        ("lender", CREATE, "p1", 200, None),
        ("bound", CREATE, "other", 403, "PARTNER_NOT_ALLOWED"),
        (None, CREATE, None, 401, "UNAUTHORIZED_KEY"),
        (None, None, None, 404, "NOT_FOUND"),
        ("lender", CREATE, "[hidden]", 200, None),
        ("lender", CREATE, None, 200, None),
    ]
    assert printed[7] == ("lender", CREATE, "p1", 502, "UPSTREAM_LOST")
    assert records[0]["request_id"] == "request1"
    assert all(each["request_id"].startswith("gateway-") for each in records[1:4])
    assert all(each["delivered"] and 0 <= each["seconds"] < 5 for each in records)


async def test_reprs_contain_no_secret():
    """The reprs of gateways, keys, key files and their attributes contain no key, digest or secret."""
    key, secret = new_key("one")
    async with running_gateway(metrics_port=0) as setup:
        things = [setup.gateway, key, vars(setup.gateway), *vars(setup.gateway).values()]
        printed = " ".join(map(repr, things)) + " ".join(map(str, things))
        assert_no_secret(printed)
        for secret_value in (
            secret,
            key.digest,
            *setup.keys.values(),
            *(each.secret for each in UPSTREAM_CREDENTIALS.values()),
        ):
            assert secret_value not in printed


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
def test_errors_in_settings_contain_no_secret(mistake):
    """The error names the setting and doesn't contain its value, neither in the text nor in the package's frames."""
    try:
        mistake("canary-secret-0123456789")
    except (ConfigurationError, TypeError) as error:
        assert_no_secret("".join(traceback.format_exception(error)).replace('mistake("canary', ""))
        assert_no_secret(package_frames(error))


def test_a_key_record_contains_no_key(tmp_path):
    """Neither the record, also when pickled, nor the file contains the key."""
    key, secret = new_key("one")
    random = secret.removeprefix("plaid-gateway-")
    assert len(random) == 43
    with contextlib.suppress(TypeError, pickle.PicklingError):
        assert random.encode() not in pickle.dumps(key)
    file = KeyFile(tmp_path / "keys.json")
    printed = file.add("two")
    assert printed.removeprefix("plaid-gateway-") not in file.path.read_text()
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert_no_secret(repr(file.read()))


PROGRAM = """
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
async def test_a_process_reveals_no_secret_to_others(tmp_path):
    """Its arguments, title, open files and output contain no secret, and it has no child processes."""
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("one")
    async with Simulator(clients={"owner": "canary-upstream-0123456789"}, reports=[REPORT]) as plaid:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "default", "-c", PROGRAM, plaid.url, str(file.path)),
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
            assert_no_secret((about / "cmdline").read_text() + (about / "comm").read_text())
            assert not (about / f"task/{process.pid}/children").read_text().split()
            assert_no_secret(" ".join(open_files(process.pid)))
        finally:
            process.stdin.close()
            output, _ = await process.communicate()
        assert process.returncode == 0
        assert_no_secret(output.decode())
    written = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert all(each.stat().st_mode & 0o077 == 0 for each in written)


async def test_tracebacks_of_cut_off_calls_contain_no_secret(all_logs):
    """Calls that end with the gateway leave no secret in tracebacks or asyncio's log."""
    asyncio.get_running_loop().set_debug(True)
    errors = io.StringIO()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.write(f"{context!r}\n"))
    async with running_gateway() as setup:
        async with contextlib.AsyncExitStack() as stack:
            key, secret = new_key("two")
            setup.upstream.ending, setup.upstream.respond = "stall", lambda _: []
            other = Gateway([key], upstream=setup.upstream.url, credentials=UPSTREAM_CREDENTIALS, drain=0.1)
            await other.start()
            for _ in range(3):
                connection = await stack.enter_async_context(raw_connection(other.url))
                await connection.send(build_request(key=secret))
            await asyncio.sleep(0.1)
            tasks = "".join(map(repr, asyncio.all_tasks()))
            await other.close()
        setup.upstream.hang_up()
        await asyncio.sleep(0.05)
    assert_no_secret(errors.getvalue())
    assert_no_secret(tasks)


async def test_a_token_is_only_in_its_response(all_logs):
    """A relay token is sent to its caller and stored nowhere else."""
    async with running_gateway() as setup:
        setup.upstream.respond = lambda _: [
            build_response(200, b'{"relay_token": "credit-relay-sandbox-canary"}')
        ]
        assert (await setup.call()).json["relay_token"] == "credit-relay-sandbox-canary"
