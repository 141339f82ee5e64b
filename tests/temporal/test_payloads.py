"""What the Temporal server stores is encrypted with the journal's keys."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from datetime import timedelta

import pytest
from canaries import REPORT_TOKEN, assert_error_is_clean, assert_no_canary
from journal_support import KEY, OTHER_KEY
from stored_secrets import describe
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.client import ActivityFailureError, Client
from temporalio.common import RetryPolicy
from temporalio.converter import DataConverter, DefaultFailureConverter
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker as ActivityWorker

from plaid_relay_async import ConfigurationError
from plaid_relay_async.journal import Journal
from plaid_relay_async.temporal import TaskQueue, Worker, data_converter

ONCE = {
    "start_to_close_timeout": timedelta(seconds=60),
    "retry_policy": RetryPolicy(maximum_attempts=1),
}
OLD, NEW = data_converter(KEY), data_converter([OTHER_KEY, KEY])


@activity.defn
async def echo(text: str) -> str:
    activity.heartbeat(text)
    return text


@activity.defn
async def fail(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as error:
        raise ApplicationError(text, text, type="Failure") from error


# ------------------------------------------------------------------------------- without a server


@pytest.mark.parametrize("value", [REPORT_TOKEN, None, b"\x00\xff", {"😀 é": [1, 2.5, True]}, ""])
async def test_a_value_survives_the_encryption(value):
    """A value is decoded as it was encoded, and the payload shows only the form of the encryption."""
    [payload] = await OLD.encode([value])
    assert dict(payload.metadata) == {"encoding": b"binary/plaid-relay-v1"}
    assert_no_canary(payload.SerializeToString().decode(errors="replace"))
    assert await OLD.decode([payload]) == [value]
    assert (await OLD.encode([value]))[0] != payload


async def test_the_first_key_encrypts_and_each_decrypts():
    """After a rotation, payloads under the old key are readable, and new ones are not under the old key."""
    assert await NEW.decode(await OLD.encode(["text"])) == ["text"]
    new = await NEW.encode(["text"])
    assert await NEW.decode(new) == await data_converter(OTHER_KEY).decode(new) == ["text"]
    with pytest.raises(ConfigurationError, match="no key"):
        await OLD.decode(new)


def test_the_key_is_that_of_the_journal(monkeypatch, tmp_path):
    """It comes from PLAID_RELAY_KEY by default, or from a file."""
    monkeypatch.setenv("PLAID_RELAY_KEY", KEY)
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text(KEY)
    encoded = asyncio.run(OLD.encode(["text"]))
    for converter in (data_converter(), data_converter(file)):
        assert asyncio.run(converter.decode(encoded)) == ["text"]


def test_a_key_is_required(monkeypatch, caplog):
    """Without a key, there is an error, and no warning that payloads are stored unencrypted."""
    monkeypatch.delenv("PLAID_RELAY_KEY", raising=False)
    with pytest.raises(ConfigurationError, match=r"a key .* its tokens would be unencrypted"):
        data_converter()
    assert not caplog.records


@pytest.mark.parametrize("position", [0, 1, 20, 60, -30, -1])
async def test_a_payload_that_was_changed_is_refused(position):
    """The error says what to do, and shows nothing of the payload."""
    [payload] = await OLD.encode([REPORT_TOKEN])
    data = bytearray(payload.data)
    data[position] ^= 1
    payload.data = bytes(data)
    with pytest.raises(ConfigurationError, match=r"no key .* Use the same keys") as caught:
        await OLD.decode([payload])
    assert_error_is_clean(caught.value)
    assert bytes(payload.data[:20]).decode() not in f"{caught.value}"


@pytest.mark.parametrize("encoding", [b"json/plain", b"binary/plaid-relay-v2", None])
async def test_an_unencrypted_payload_is_refused(encoding):
    """A payload that wasn't encrypted, or by a newer release, is refused, since anyone could have written it."""
    [payload] = await DataConverter.default.encode([REPORT_TOKEN])
    payload.metadata["encoding"] = encoding or b""
    for each in (payload, Payload(data=payload.data), Payload()):
        with pytest.raises(ConfigurationError, match="isn't encrypted") as caught:
            await OLD.decode([each])
        assert "Connect each Temporal client of a run with temporal.data_converter()" in caught.value.advice
        assert_error_is_clean(caught.value)


def test_the_extra_is_missing():
    """The error names the extra."""
    code = "import sys; sys.modules['temporalio'] = None; import plaid_relay_async.temporal"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'plaid_relay_async[temporal]'" in done.stderr


# ----------------------------------------------------------------------------------- on a server


async def test_all_of_an_activity_is_encrypted(temporal_server, temporal_client, task_queue):
    """Input, result, heartbeat and summary of an activity are, also after a rotation, readable with the keys only."""
    async with ActivityWorker(temporal_client, task_queue=task_queue, activities=[echo]):
        handle = await temporal_client.start_activity(
            echo, REPORT_TOKEN, id=task_queue, task_queue=task_queue, summary=REPORT_TOKEN, **ONCE
        )
        assert await handle.result() == REPORT_TOKEN
    raw = await describe(temporal_client, task_queue)
    assert REPORT_TOKEN.encode() not in raw
    assert b"plaid-relay-v1" in raw
    rotated = await Client.connect(temporal_server.address, data_converter=NEW)
    description = await rotated.get_activity_handle(task_queue).describe(
        include_input=True, include_outcome=True
    )
    assert await description.input() == [REPORT_TOKEN]
    assert await description.result() == REPORT_TOKEN
    other = await Client.connect(temporal_server.address, data_converter=data_converter(OTHER_KEY))
    with pytest.raises(ConfigurationError, match="no key"):
        await other.get_activity_handle(task_queue).result()


@pytest.mark.parametrize(
    "converter",
    [DataConverter.default, dataclasses.replace(OLD, failure_converter_class=DefaultFailureConverter)],
)
async def test_a_client_that_does_not_encrypt_is_refused(temporal_server, client, journal_url, converter):
    """Neither a worker nor a run accepts a client that would store payloads or failures unencrypted."""
    temporal = await Client.connect(temporal_server.address, data_converter=converter)
    with pytest.raises(ConfigurationError, match="doesn't encrypt"):
        Worker(temporal, "queue", client, journal_url, key=KEY)
    with pytest.raises(ConfigurationError, match="doesn't encrypt"):
        TaskQueue(temporal, "queue", journal=Journal(journal_url, run="x", key=KEY))


async def test_failures_are_encrypted(temporal_server, temporal_client, task_queue):
    """Messages, tracebacks and details of a failure and of its cause are encrypted."""
    async with ActivityWorker(temporal_client, task_queue=task_queue, activities=[fail]):
        handle = await temporal_client.start_activity(
            fail, REPORT_TOKEN, id=task_queue, task_queue=task_queue, **ONCE
        )
        with pytest.raises(ActivityFailureError) as caught:
            await handle.result()
    failure = caught.value.cause
    assert isinstance(failure, ApplicationError)
    assert (failure.message, *failure.details) == (REPORT_TOKEN, REPORT_TOKEN)
    assert REPORT_TOKEN in str(failure.cause)
    raw = await describe(temporal_client, task_queue)
    assert REPORT_TOKEN.encode() not in raw
    assert b"Encoded failure" in raw
    assert b"test_payloads.py" not in raw  # the traceback


async def test_a_worker_without_the_key_executes_nothing(
    temporal_server, temporal_client, task_queue, clean_logs
):
    """An activity whose input a worker can't decrypt fails, and its function isn't called."""
    other = await Client.connect(temporal_server.address, data_converter=NEW)
    async with ActivityWorker(temporal_client, task_queue=task_queue, activities=[echo]):
        handle = await other.start_activity(echo, REPORT_TOKEN, id=task_queue, task_queue=task_queue, **ONCE)
        with pytest.raises(ActivityFailureError) as caught:
            await handle.result()
    failure = caught.value.cause
    assert isinstance(failure, ApplicationError)
    assert failure.message == "Failed decoding arguments"
    assert (failure.cause.type, "no key" in failure.cause.message) == ("ConfigurationError", True)
