"""The options with which the command connects to Temporal: each invalid one is an error that names it."""

from __future__ import annotations

import asyncio

import pytest
from attrs import frozen
from temporalio.converter import DataConverter
from temporalio.envconfig import ClientConfigProfile
from temporalio.service import RPCError, RPCStatusCode

from plaid_relay_async.cli.signals import Signals
from plaid_relay_async.cli.temporal import run_until_signal
from plaid_relay_async.cli.temporal_options import TemporalConnection, check_namespace
from plaid_relay_async.errors import NotSentError

CANARY = "canary-api-key"
PEM = {
    "cert": "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
    "key": "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n",
}
LOCAL = ("--temporal", "127.0.0.1:1", "--task-queue", "relay")


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Create the files that the tests name: certificates, keys that are private or not, and API keys."""
    contents = {
        "cert.pem": PEM["cert"],
        "key.pem": PEM["key"],
        "open.pem": PEM["key"],
        "private.pem": PEM["cert"],
        "encrypted.pem": PEM["key"].replace("PRIVATE", "ENCRYPTED PRIVATE"),
        "text.pem": "canary",
        "api.key": f"{CANARY}\n",
        "open.key": f"{CANARY}\n",
        "empty.key": "\n",
        "latin.key": "ä",
        "lines.key": f"{CANARY}\n{CANARY}\n",
    }
    monkeypatch.chdir(tmp_path)
    for name, text in contents.items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644 if name in {"cert.pem", "open.pem", "open.key"} else 0o600)


TLS = "--temporal-tls"


@pytest.mark.parametrize(
    ("args", "variables", "problem"),
    [
        (["--temporal", "127.0.0.1:1"], {}, "--task-queue: must name the task queue"),
        (["--task-queue", "q"], {}, "--temporal: must be HOST:PORT"),
        (["--task-queue", "q", "--temporal", "127.0.0.1"], {}, "--temporal: must be HOST:PORT"),
        (["--task-queue", "q", "--temporal", "http://127.0.0.1:1"], {}, "--temporal: must be HOST:PORT"),
        (["--task-queue", "q", "--temporal", "a..b:1"], {}, "--temporal: must be HOST:PORT"),
        (["--task-queue", "q"], {"TEMPORAL_ADDRESS": "127.0.0.1"}, "--temporal: must be HOST:PORT"),
        (["--task-queue", "q", "--temporal", "10.0.0.1:7233"], {}, "requires TLS; use --temporal-tls, or"),
        ([*LOCAL, "--temporal-plaintext", TLS], {}, "--temporal-plaintext: can't be used with"),
        (LOCAL, {"TEMPORAL_GRPC_META_AUTHORIZATION": CANARY}, "a credential requires TLS"),
        (
            [*LOCAL, "--temporal-plaintext"],
            {"TEMPORAL_API_KEY": CANARY},
            "--temporal-plaintext: can't be used with",
        ),
        (
            [*LOCAL, "--temporal-api-key-file", "api.key"],
            {"TEMPORAL_TLS": "false"},
            "--temporal-api-key-file: an API key requires TLS",
        ),
        ([*LOCAL, "--temporal-api-key-file", "none"], {}, "--temporal-api-key-file: none: No such file"),
        ([*LOCAL, "--temporal-api-key-file", "open.key"], {}, "too open; run chmod 600"),
        ([*LOCAL, "--temporal-api-key-file", "empty.key"], {}, "must contain an API key"),
        ([*LOCAL, "--temporal-api-key-file", "latin.key"], {}, "must contain an API key"),
        # Temporal's core would send the requests without a key.
        ([*LOCAL, "--temporal-api-key-file", "lines.key"], {}, "must contain an API key"),
        ([*LOCAL], {"TEMPORAL_API_KEY": f"{CANARY}\n{CANARY}"}, "must contain an API key"),
        (["--task-queue", "q", "--temporal", "10.0.0.1:7233"], {"TEMPORAL_API_KEY": ""}, "requires TLS; use"),
        ([*LOCAL, f"{TLS}-cert", "cert.pem"], {}, f"{TLS}-cert and {TLS}-key must be used together"),
        ([*LOCAL, f"{TLS}-key", "key.pem"], {}, f"{TLS}-cert and {TLS}-key must be used together"),
        ([*LOCAL, f"{TLS}-cert", "none"], {}, f"{TLS}-cert: none: No such file"),
        (
            [*LOCAL, f"{TLS}-cert", "cert.pem", f"{TLS}-key", "open.pem"],
            {},
            f"{TLS}-key: open.pem: file perm",
        ),
        (
            [*LOCAL],
            {"TEMPORAL_TLS_CLIENT_CERT_PATH": "cert.pem", "TEMPORAL_TLS_CLIENT_KEY_PATH": "open.pem"},
            f"{TLS}-key: open.pem: file permissions are too open",
        ),
        ([*LOCAL, f"{TLS}-ca", "text.pem"], {}, f"{TLS}-ca: must be a PEM file with a certificate"),
        ([*LOCAL, f"{TLS}-ca", "key.pem"], {}, f"{TLS}-ca: must be a PEM file with a certificate"),
        (
            [*LOCAL, f"{TLS}-cert", "key.pem", f"{TLS}-key", "key.pem"],
            {},
            f"{TLS}-cert: must be a PEM file with a certificate",
        ),
        (
            [*LOCAL, f"{TLS}-cert", "cert.pem", f"{TLS}-key", "private.pem"],
            {},
            f"{TLS}-key: must be a PEM file with an unencrypted private key",
        ),
        (
            [*LOCAL, f"{TLS}-cert", "cert.pem", f"{TLS}-key", "encrypted.pem"],
            {},
            f"{TLS}-key: must be a PEM file with an unencrypted private key",
        ),
        (
            [*LOCAL],
            {"TEMPORAL_TLS_SERVER_CA_CERT_DATA": "canary"},
            f"{TLS}-ca: must be a PEM file with a certificate",
        ),
        ([*LOCAL, f"{TLS}-server-name", "a b"], {}, f"{TLS}-server-name: must be a host name"),
        ([*LOCAL], {"TEMPORAL_TLS_SERVER_NAME": "a b"}, f"{TLS}-server-name: must be a host name"),
        ([*LOCAL], {"TEMPORAL_PROFILE": "none"}, "Temporal's settings: Profile 'none' not found"),
        (["canary", *LOCAL], {}, "RATE: must be a number of calls a second above 0"),
        (["0", *LOCAL], {}, "RATE: must be a number of calls a second above 0"),
        (["inf", *LOCAL], {}, "RATE: must be a number of calls a second above 0"),
        (["pause", "--replace", *LOCAL], {}, "--replace: requires RATE"),
    ],
)
def test_invalid_options(rate, files, monkeypatch, args, variables, problem):
    """Each invalid setting has status 2, and a message that names it and quotes no secret."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = rate(*args)
    assert (result.status, result.out) == (2, "")
    assert problem in result.err
    assert "canary" not in result.err


def test_a_broken_configuration_file_is_not_quoted(rate, monkeypatch, tmp_path):
    """The message about an invalid configuration file has the line, and not its text: it may be an API key."""
    path = tmp_path / "temporal.toml"
    path.write_text(f'[profile.default]\napi_key = "{CANARY}\n')
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(path))
    result = rate(*LOCAL)
    assert result.status == 2
    assert "Temporal's settings:" in result.err
    assert "line 2" in result.err
    assert CANARY not in result.err


@pytest.mark.parametrize(
    ("args", "variables"),
    [
        ([], {}),
        (["--temporal-namespace", "other"], {}),
        ([TLS, f"{TLS}-server-name", "temporal.example"], {}),
        (["--temporal-api-key-file", "api.key"], {}),
        ([], {"TEMPORAL_API_KEY": CANARY}),
    ],
)
def test_a_server_that_cannot_be_reached(rate, files, monkeypatch, args, variables):
    """A server that can't be reached has status 1 and a message with the reason, as for a journal."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = rate(*LOCAL, *args)
    assert (result.status, result.out) == (1, "")
    assert f"{NotSentError.__name__}: can't use Temporal at 127.0.0.1:1: Connection refused" in result.err
    assert CANARY not in result.err


@frozen
class RefusingClient:
    """A client of Temporal that may use a namespace but not describe it, as the role of an API key may require.

    The development server has no roles.
    """

    namespace: str = "default"

    @property
    def workflow_service(self):
        return self

    operator_service = workflow_service

    async def describe_namespace(self, request):
        raise RPCError("canary", RPCStatusCode.PERMISSION_DENIED, b"")

    list_search_attributes = describe_namespace


async def test_a_role_that_describes_nothing(capfd):
    """A client that may not describe its namespace is accepted, and the search attribute isn't used."""
    connection = TemporalConnection("q", ClientConfigProfile(address="a:1"), DataConverter.default)
    await check_namespace(RefusingClient())
    assert not await connection.has_search_attribute(RefusingClient())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (RPCError("the text", RPCStatusCode.INVALID_ARGUMENT, b""), "has rejected a request: the text"),
        (TimeoutError(), "hasn't kept a setting; another program may change it at the same time"),
    ],
)
def test_a_rejected_request(error, problem):
    """An error of a request to the server names the server and the problem."""
    connection = TemporalConnection("q", ClientConfigProfile(address="a:1"), DataConverter.default)
    with pytest.raises(NotSentError, match=f"Temporal at a:1 {problem}"):
        with connection.naming_server():
            raise error


def test_a_worker_that_temporal_ends():
    """If Temporal ends a worker, the error says so."""

    async def work():
        raise RuntimeError('Worker failed: Status { message: "Namespace is gone." }')

    with pytest.raises(NotSentError, match=r"Temporal has ended the worker: Namespace is gone\."):
        asyncio.run(run_until_signal(work(), Signals()))
