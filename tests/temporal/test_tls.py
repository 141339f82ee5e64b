"""The command and a Temporal server behind TLS: what connects, what doesn't and why, and where an API key goes."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import select
import socket
import ssl
import subprocess
import threading

import pytest
import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from temporal_command import COMMAND, stop
from tls_server import tls_server

pytestmark = pytest.mark.timeout(60)  # no error may take long

AUTHORITY, STRANGER = trustme.CA(), trustme.CA()
API_KEY = "canary-api-key"
TLS = "--temporal-tls"
CA = (f"{TLS}-ca", "ca.pem")
CLIENT = (f"{TLS}-cert", "client.pem", f"{TLS}-key", "client.key")
VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@pytest.fixture(autouse=True)
def _files(no_settings, monkeypatch, tmp_path):
    """Create the files that the tests name: authorities, certificates of clients, their keys, and an API key."""
    monkeypatch.chdir(tmp_path)
    AUTHORITY.cert_pem.write_to_path("ca.pem")
    AUTHORITY.private_key_pem.write_to_path("ca.key")
    STRANGER.cert_pem.write_to_path("stranger-ca.pem")
    for name, authority in {"client": AUTHORITY, "stranger": STRANGER}.items():
        issued = authority.issue_cert("worker@lender.example")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        (tmp_path / f"{name}.key").write_bytes(issued.private_key_pem.bytes())
        (tmp_path / f"{name}.key").chmod(0o600)
    (tmp_path / "api.key").write_text(API_KEY)
    (tmp_path / "api.key").chmod(0o600)


def server_context(name="127.0.0.1", *, self_signed=False, mutual=False, alpn="h2", version=None, **validity):
    """Return the TLS context of a server with a certificate for a name; `mutual` requires one of the client."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols([alpn])
    if self_signed:
        context.load_cert_chain("ca.pem", "ca.key")
    else:
        AUTHORITY.issue_cert(name, **validity).configure_cert(context)
    if mutual:
        AUTHORITY.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


@contextlib.contextmanager
def endpoint(upstream, **settings):
    """Run a TLS endpoint in front of a server; yield its address, and what it has passed on to the server."""
    received = bytearray()
    host, _, port = upstream.partition(":")

    def forward(client):
        with socket.create_connection((host, int(port))) as server:
            while True:
                # Decrypted bytes that wait in the TLS object don't make its socket readable.
                ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                for source in ready:
                    if not (piece := source.recv(65_536)):
                        return
                    if source is client:
                        received.extend(piece)
                    (server if source is client else client).sendall(piece)

    with tls_server(server_context(**settings), forward) as address:
        yield address, received


@contextlib.contextmanager
def rejecting_server():
    """Run a gRPC server with TLS that rejects each request; yield its address, and the headers of the requests."""
    requests = []

    def reject(connection):
        http = H2Connection(H2Configuration(client_side=False))
        http.initiate_connection()
        while True:
            connection.sendall(http.data_to_send())
            if not (piece := connection.recv(65_536)):
                return
            for event in http.receive_data(piece):
                if isinstance(event, RequestReceived):
                    requests.append({name.decode(): value.decode() for name, value in event.headers})
                    http.send_headers(event.stream_id, UNAUTHENTICATED, end_stream=True)

    with tls_server(server_context(), reject) as address:
        yield address, requests


UNAUTHENTICATED = [
    (":status", "200"),
    ("content-type", "application/grpc"),
    ("grpc-status", "16"),
    ("grpc-message", "Request unauthorized."),
]


def configure(source, monkeypatch, tmp_path, **settings):
    """Apply settings of TLS by a source of them, and return the options for it."""
    if source == "options":
        names = {"server_ca_cert": "ca", "client_cert": "cert", "client_key": "key"}
        return [word for name, path in settings.items() for word in (f"{TLS}-{names[name]}", path)]
    if source == "configuration file":
        lines = [f'{name}_path = "{path}"' for name, path in settings.items()]
        (tmp_path / "temporal.toml").write_text("\n".join(["[profile.default.tls]", *lines]))
        monkeypatch.setenv("TEMPORAL_CONFIG_FILE", "temporal.toml")
    for name, path in settings.items():
        if source == "variables with paths":
            monkeypatch.setenv(f"TEMPORAL_TLS_{name.upper()}_PATH", path)
        if source == "variables":
            monkeypatch.setenv(f"TEMPORAL_TLS_{name.upper()}_DATA", (tmp_path / path).read_text())
    return []


# --------------------------------------------------------------------------------------------- connections


@pytest.mark.parametrize("mutual", [False, True], ids=["TLS", "mTLS"])
@pytest.mark.parametrize("source", ["options", "variables", "variables with paths", "configuration file"])
def test_tls_by_each_source_of_settings(
    rate, temporal_server, task_queue, monkeypatch, tmp_path, source, mutual
):
    """Options, environment variables and Temporal's configuration file describe a connection with TLS and mTLS."""
    settings = {"server_ca_cert": "ca.pem"}
    if mutual:
        settings |= {"client_cert": "client.pem", "client_key": "client.key"}
    options = configure(source, monkeypatch, tmp_path, **settings)
    with endpoint(temporal_server.address, mutual=mutual) as (address, received):
        result = rate("--task-queue", task_queue, "--temporal", address, *options)
    assert (result.status, result.err) == (0, "")
    assert received.startswith(b"PRI * HTTP/2.0")


def test_options_of_tls_take_precedence(rate, temporal_server, task_queue, monkeypatch):
    """An option of TLS implies TLS, whatever `TEMPORAL_TLS` says."""
    monkeypatch.setenv("TEMPORAL_TLS", "false")
    with endpoint(temporal_server.address) as (address, received):
        result = rate("--task-queue", task_queue, "--temporal", address, *CA)
    assert (result.status, result.err) == (0, "")
    assert received


def test_a_run_over_mtls(simulator, bulk, start_worker, temporal_server, monkeypatch):
    """`bulk` and `worker` connect as `rate` does, and a run succeeds."""
    with endpoint(temporal_server.address, mutual=True) as (address, _):
        monkeypatch.setenv("TEMPORAL_ADDRESS", address)
        worker = start_worker(*CA, *CLIENT)
        result = bulk(5, *CA, *CLIENT)
        status, err = stop(worker)
    assert (result.status, len(simulator.ledger)) == (0, 5), result.err
    assert (status, "Traceback" in err) == (0, False), err


def test_the_name_in_the_certificate(rate, temporal_server, task_queue):
    """`--temporal-tls-server-name` is the name that the server's certificate must have, in place of the host."""
    with endpoint(temporal_server.address, name="temporal.example") as (address, _):
        results = [
            rate("--task-queue", task_queue, "--temporal", address, *CA, f"{TLS}-server-name", name)
            for name in ("temporal.example", "another.example")
        ]
    assert [each.status for each in results] == [0, 1]
    assert "the server's certificate is for another name" in results[1].err


# -------------------------------------------------------------------------------------------------- errors

PAST = {"not_before": dt.datetime(2020, 1, 1), "not_after": dt.datetime(2021, 1, 1)}  # noqa: DTZ001
FUTURE = {"not_before": dt.datetime(2090, 1, 1), "not_after": dt.datetime(2091, 1, 1)}  # noqa: DTZ001


@pytest.mark.parametrize(
    ("server", "options", "problems"),
    [
        ({}, [TLS], ["isn't trusted: its authority is unknown", f"use {TLS}-ca"]),
        ({}, [f"{TLS}-ca", "stranger-ca.pem"], ["isn't trusted: its authority is unknown", f"use {TLS}-ca"]),
        ({}, ["--temporal-api-key-file", "api.key"], ["its authority is unknown", f"use {TLS}-ca"]),
        ({"name": "a.example"}, CA, ["is for another name", f"use {TLS}-server-name"]),
        (PAST, CA, ["isn't trusted: it has expired"]),
        (FUTURE, CA, ["isn't trusted: it isn't valid yet", "clock"]),
        ({"self_signed": True}, CA, ["isn't trusted: CaUsedAsEndEntity"]),
        ({"alpn": "http/1.1"}, CA, ["doesn't use HTTP/2"]),
        ({"mutual": True}, [*CA, *CLIENT[:3], "stranger.key"], [f"isn't the key of {TLS}-cert"]),
        ({}, [], [f"if it requires TLS, use {TLS}"]),
        ({"mutual": True}, [], [f"if it requires TLS, use {TLS}"]),
    ],
    ids=[
        "no authority",
        "another authority",
        "only an API key",
        "another name",
        "expired",
        "not yet valid",
        "self-signed",
        "not HTTP/2",
        "a key of another certificate",
        "without TLS",
        "without mTLS",
    ],
)
def test_a_connection_that_fails(rate, temporal_server, task_queue, server, options, problems):
    """The error names the server, the cause and the option that helps; no request has left."""
    with endpoint(temporal_server.address, **server) as (address, received):
        result = rate("--task-queue", task_queue, "--temporal", address, *options)
    assert (result.status, result.out) == (1, "")
    assert f"can't use Temporal at {address}: " in result.err
    assert [each for each in problems if each not in result.err] == [], result.err
    assert API_KEY not in result.err
    assert not received


@VERSIONS
@pytest.mark.parametrize("name", [None, "stranger"])
def test_a_server_that_rejects_the_client_certificate(rate, temporal_server, task_queue, version, name):
    """A missing or wrong certificate is an error that names the option.

    In TLS 1.3, the client may notice the end of the connection before the reason for it.
    """
    options = [f"{TLS}-cert", f"{name}.pem", f"{TLS}-key", f"{name}.key"] if name else []
    with endpoint(temporal_server.address, mutual=True, version=version) as (address, received):
        result = rate("--task-queue", task_queue, "--temporal", address, *CA, *options)
    assert (result.status, result.out) == (1, "")
    assert f"can't use Temporal at {address}: the server has ended " in result.err
    assert f"if it requires a client certificate, use {TLS}-cert" in result.err
    assert not received


def test_a_server_without_tls(rate, temporal_server, task_queue):
    """An error says that the port is one without TLS."""
    result = rate("--task-queue", task_queue, "--temporal", temporal_server.address, *CA)
    assert result.status == 1
    assert f"can't use Temporal at {temporal_server.address}: the server doesn't use TLS" in result.err


@pytest.mark.parametrize("command", ["bulk", "worker"])
def test_nothing_is_sent_without_a_connection(
    simulator, bulk, run, temporal_server, task_queue, monkeypatch, command
):
    """A run and a worker end with the error, before a request to Plaid or an entry of the journal."""
    with endpoint(temporal_server.address) as (address, received):
        monkeypatch.setenv("TEMPORAL_ADDRESS", address)
        result = bulk(1, TLS) if command == "bulk" else run("worker", "--task-queue", task_queue, TLS)
    assert result.status == 1
    assert f"can't use Temporal at {address}: the server's certificate isn't trusted" in result.err
    assert not received
    assert not simulator.requests
    assert "nov" not in run("status").out


# ------------------------------------------------------------------------------------------------ API keys


@pytest.mark.parametrize("source", ["option", "variable", "configuration file"])
def test_an_api_key_arrives_as_a_bearer_token(rate, task_queue, monkeypatch, tmp_path, source):
    """Each source of the key leads to the header that Temporal expects; a rejected key is an error immediately."""
    options = []
    if source == "option":
        options = ["--temporal-api-key-file", "api.key"]
    elif source == "variable":
        monkeypatch.setenv("TEMPORAL_API_KEY", f" {API_KEY}\r")  # as a careless script sets it
    else:
        (tmp_path / "temporal.toml").write_text(f'[profile.default]\napi_key = "{API_KEY}"')
        monkeypatch.setenv("TEMPORAL_CONFIG_FILE", "temporal.toml")
    with rejecting_server() as (address, requests):
        result = rate("--task-queue", task_queue, "--temporal", address, *CA, *options)
    assert {each.get("authorization") for each in requests} == {f"Bearer {API_KEY}"}
    assert {each[":scheme"] for each in requests} == {"https"}
    assert (result.status, result.out) == (1, "")
    assert f"can't use Temporal at {address}: Request unauthorized." in result.err
    assert API_KEY not in result.err


def test_no_api_key_without_one(rate, task_queue):
    """Without a key, no header is sent."""
    with rejecting_server() as (address, requests):
        assert rate("--task-queue", task_queue, "--temporal", address, *CA).status == 1
    assert requests
    assert not any("authorization" in each for each in requests)


def test_an_api_key_is_only_sent_over_tls(rate, task_queue):
    """A server without TLS receives the beginning of a TLS handshake, and not the key."""
    received = []

    def accept():
        connection, _ = server.accept()
        with connection:
            received.append(connection.recv(65_536))

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        thread = threading.Thread(target=accept)
        thread.start()
        result = rate("--task-queue", task_queue, "--temporal", address, "--temporal-api-key-file", "api.key")
        thread.join()
    assert result.status == 1
    assert received[0].startswith(b"\x16\x03")
    assert API_KEY.encode() not in received[0]


def test_an_api_key_is_in_no_log(temporal_server, task_queue):
    """Neither this package nor Temporal's core logs the key, also if everything is logged."""
    options = [*CA, "--temporal-api-key-file", "api.key"]
    variables = {"PLAID_RELAY_LOG": "debug", "RUST_LOG": "trace"}
    with endpoint(temporal_server.address) as (address, _):
        result = subprocess.run(
            [*COMMAND, "rate", "--task-queue", task_queue, "--temporal", address, *options],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert API_KEY not in result.stdout + result.stderr
