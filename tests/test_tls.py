"""TLS that fails: why, what to do about it, and whether a request can have been executed."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import OWNER, QUICK
from test_session import echoing

from plaid_relay_async import NotSentError, OutcomeUnknownError, RelayClient, RelayCreateRequest, RetryPolicy
from plaid_relay_async.exchange import RequestBody, finish_handshake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ONCE = RetryPolicy(attempts=1)
TOKEN = b'{"relay_token": "T-1", "request_id": "q"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(TOKEN), TOKEN)
BOTH = pytest.mark.parametrize("direct", [True, False], ids=["directly", "by a session"])
NOW = dt.datetime.now(dt.UTC)
YEAR = dt.timedelta(days=365)


def server_context() -> ssl.SSLContext:
    return ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)


# ----------------------------------------------------------------------- the server's certificate


def of_no_known_authority(_ours: ssl.SSLContext, theirs: ssl.SSLContext, _folder: Path) -> None:
    trustme.CA().issue_cert("127.0.0.1").configure_cert(theirs)


def of_another_host(ours: ssl.SSLContext, theirs: ssl.SSLContext, _folder: Path) -> None:
    authority = trustme.CA()
    authority.configure_trust(ours)
    authority.issue_cert("elsewhere.example").configure_cert(theirs)


def expired(ours: ssl.SSLContext, theirs: ssl.SSLContext, _folder: Path) -> None:
    authority = trustme.CA()
    authority.configure_trust(ours)
    issued = authority.issue_cert("127.0.0.1", not_before=NOW - 2 * YEAR, not_after=NOW - YEAR)
    issued.configure_cert(theirs)


def not_yet_valid(ours: ssl.SSLContext, theirs: ssl.SSLContext, _folder: Path) -> None:
    authority = trustme.CA()
    authority.configure_trust(ours)
    issued = authority.issue_cert("127.0.0.1", not_before=NOW + YEAR, not_after=NOW + 2 * YEAR)
    issued.configure_cert(theirs)


def self_signed(_ours: ssl.SSLContext, theirs: ssl.SSLContext, folder: Path) -> None:
    load(theirs, folder, *issue())


def without_key_identifier(ours: ssl.SSLContext, theirs: ssl.SSLContext, folder: Path) -> None:
    """As older tools issue them; Python checks strictly from 3.13 on."""
    authority, key = issue(authority=True)
    ours.load_verify_locations(cadata=authority.public_bytes(serialization.Encoding.PEM).decode())
    ours.verify_flags |= ssl.VERIFY_X509_STRICT
    load(theirs, folder, *issue(issuer=(authority, key)))


def issue(
    *, authority: bool = False, issuer: tuple[x509.Certificate, Any] | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for 127.0.0.1 without key identifiers, by itself or by an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority" if authority else "server")])
    signer, signing_key = (name, key) if issuer is None else (issuer[0].subject, issuer[1])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(signer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - YEAR)
        .not_valid_after(NOW + YEAR)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("127.0.0.1")]), critical=False)
    )
    if authority:
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = certificate.add_extension(identifier, critical=False)
    return certificate.sign(signing_key, hashes.SHA256()), key


def load(theirs: ssl.SSLContext, folder: Path, certificate: x509.Certificate, key: Any) -> None:
    path = folder / "server.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    theirs.load_cert_chain(path)


@pytest.mark.parametrize(
    ("certificate", "reason", "way_out"),
    [
        (of_no_known_authority, "unable to get local issuer certificate", "SSL_CERT_FILE .*ssl="),
        (self_signed, "self-signed certificate", "SSL_CERT_FILE .*ssl="),
        (
            of_another_host,
            "certificate is not valid for '127.0.0.1'",
            "by a name that its certificate contains",
        ),
        (expired, "certificate has expired", "has to be renewed"),
        (not_yet_valid, "certificate is not yet valid", "machine's clock"),
        (without_key_identifier, "Missing Authority Key Identifier", "ssl.VERIFY_X509_STRICT"),
    ],
)
async def test_an_error_says_why_a_certificate_is_not_trusted(tmp_path, certificate, reason, way_out):
    """OpenSSL's reason and the way out, for whose certificate; all requests share it, so a batch stops."""
    ours, theirs = ssl.create_default_context(), server_context()
    certificate(ours, theirs, tmp_path)
    async with (
        echoing(theirs) as (url, came, _),
        RelayClient(OWNER, base_url=url, ssl=ours, retry=ONCE) as client,
    ):
        requests = RelayCreateRequest.fan_out(["t"], [f"p{n}" for n in range(100)])
        result = await client.relay.create_many(requests, concurrency=2)
    assert came == []
    assert len(result.failed) < 10
    error = result.failed[0].error
    assert isinstance(error, NotSentError)
    host = url.partition("://")[2]
    text = str(error)
    assert f"the certificate of {host} isn't trusted: " in text
    assert reason in text
    with pytest.raises(NotSentError, match=way_out):
        raise error


# ----------------------------------------------------------------------- the client's certificate


@contextlib.contextmanager
def listening(tls: ssl.SSLContext, serve: Callable[[ssl.SSLSocket], None]) -> Iterator[str]:
    """A server in a thread: asyncio's own servers send no alert when they reject a handshake."""

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            if closing:
                return connection.close()
            connection.settimeout(30)
            # What fails is the client's to notice.
            with (
                contextlib.suppress(OSError),
                connection,
                tls.wrap_socket(connection, server_side=True) as wrapped,
            ):
                serve(wrapped)

    closing: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.getsockname()[1]}"
        finally:
            closing.append(True)
            socket.create_connection(server.getsockname()).close()
            thread.join()


def authenticating(version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a client, and of a server that wants a certificate of one authority."""
    authority, ours, theirs = trustme.CA(), ssl.create_default_context(), server_context()
    authority.configure_trust(ours)
    authority.configure_trust(theirs)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    theirs.verify_mode = ssl.CERT_REQUIRED
    theirs.minimum_version = theirs.maximum_version = version
    return ours, theirs


@BOTH
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("certificate", ["none", "another authority's"])
async def test_a_server_that_rejects_the_client_has_executed_nothing(direct, version, certificate):
    """In TLS 1.3, too, where the alert comes after the request: not sent, and the batch stops."""
    ours, theirs = authenticating(version)
    if certificate != "none":
        trustme.CA().issue_cert("me@lender.example").configure_cert(ours)
    came: list[bytes] = []
    with listening(theirs, lambda connection: came.append(connection.recv(1))) as url:
        async with RelayClient(OWNER, base_url=url, ssl=ours, retry=QUICK, direct=direct) as client:
            requests = RelayCreateRequest.fan_out(["t"], [f"p{n}" for n in range(100)])
            result = await client.relay.create_many(requests, concurrency=2)
    assert came == []
    assert not result.unknown
    assert len(result.failed) < 10
    with pytest.raises(NotSentError, match=r"TLS with .* failed: .*load_cert_chain"):
        raise result.failed[0].error


def read_request(connection: ssl.SSLSocket) -> None:
    came = b""
    while not came.endswith(b"}"):
        came += connection.recv(65_536)


@BOTH
@pytest.mark.parametrize("answered", [0, 1], ids=["on a new connection", "on a used one"])
async def test_a_rejection_after_the_request_was_read_proves_nothing(direct, answered):
    """A server that asks for a certificate later may have executed the request: unknown."""
    ours, theirs = authenticating(ssl.TLSVersion.TLSv1_3)
    ours.post_handshake_auth = theirs.post_handshake_auth = True
    executed: list[str] = []

    def serve(connection: ssl.SSLSocket) -> None:
        for _ in range(answered):
            read_request(connection)
            connection.sendall(OK)
        read_request(connection)
        executed.append("a creation")
        connection.verify_client_post_handshake()
        connection.sendall(b"")  # sends what asks for the certificate
        connection.do_handshake()
        connection.recv(1)

    with listening(theirs, serve) as url:
        async with RelayClient(OWNER, base_url=url, ssl=ours, retry=QUICK, direct=direct) as client:
            for _ in range(answered):
                await client.relay.create(["t"], "p")
            with pytest.raises(OutcomeUnknownError, match="certificate required"):
                await client.relay.create(["t"], "p")
    assert executed == ["a creation"]


@pytest.mark.parametrize(
    ("reason", "proves"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("SSLV3_ALERT_BAD_CERTIFICATE", True),
        ("TLSV1_ALERT_ACCESS_DENIED", True),
        ("TLSV1_ALERT_INTERNAL_ERROR", False),
        ("TLSV1_ALERT_DECRYPT_ERROR", False),
        ("SSLV3_ALERT_BAD_RECORD_MAC", False),
        ("SSLV3_ALERT_UNEXPECTED_MESSAGE", False),
        ("SSLV3_ALERT_CLOSE_NOTIFY", False),
        ("TLSV1_ALERT_USER_CANCELLED", False),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_an_alert_proves_something_only_at_the_end_of_a_handshake(reason, proves, version):
    """For the first request of a connection with TLS 1.3, and for no other request."""
    error = aiohttp.ClientOSError(1, f"[SSL: {reason}] words of OpenSSL's (_ssl.c:1)")
    authority, ours, theirs = trustme.CA(), ssl.create_default_context(), server_context()
    authority.configure_trust(ours)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours.maximum_version = version
    async with echoing(theirs) as (url, _, _), aiohttp.ClientSession() as session:
        connection = await session.connector.connect(
            aiohttp.ClientRequest("POST", aiohttp.client.URL(url), loop=asyncio.get_running_loop(), ssl=ours),
            traces=[],
            timeout=aiohttp.ClientTimeout(),
        )
        first, again = RequestBody(b"{}", lambda: None), RequestBody(b"{}", lambda: None)
        if not first.begin_send(connection.protocol):
            await finish_handshake()
            assert first.begin_send(connection.protocol)
        assert first.was_rejected(error) is (proves and version is ssl.TLSVersion.TLSv1_3)
        assert not first.was_rejected(ConnectionResetError(104, "Connection reset by peer"))
        assert again.begin_send(connection.protocol)
        assert not again.was_rejected(error)
        # A middleware of a borrowed session may send a request twice.
        assert first.begin_send(connection.protocol)
        assert not first.was_rejected(error)
        connection.close()
