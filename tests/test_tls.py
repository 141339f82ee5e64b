"""TLS errors: the cause, the remedy, and whether the server can have executed a request."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from servers import echoing
from support import OWNER, QUICK
from tls_server import tls_server

from plaid_relay_async import NotSentError, OutcomeUnknownError, RelayClient, RelayCreateRequest, RetryPolicy
from plaid_relay_async.exchange import RequestBody, finish_handshake

if TYPE_CHECKING:
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


def of_no_known_authority(_ours: ssl.SSLContext, server_tls: ssl.SSLContext, _folder: Path) -> None:
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server_tls)


def of_another_host(client_tls: ssl.SSLContext, server_tls: ssl.SSLContext, _folder: Path) -> None:
    authority = trustme.CA()
    authority.configure_trust(client_tls)
    authority.issue_cert("elsewhere.example").configure_cert(server_tls)


def expired(client_tls: ssl.SSLContext, server_tls: ssl.SSLContext, _folder: Path) -> None:
    authority = trustme.CA()
    authority.configure_trust(client_tls)
    issued = authority.issue_cert("127.0.0.1", not_before=NOW - 2 * YEAR, not_after=NOW - YEAR)
    issued.configure_cert(server_tls)


def not_yet_valid(client_tls: ssl.SSLContext, server_tls: ssl.SSLContext, _folder: Path) -> None:
    authority = trustme.CA()
    authority.configure_trust(client_tls)
    issued = authority.issue_cert("127.0.0.1", not_before=NOW + YEAR, not_after=NOW + 2 * YEAR)
    issued.configure_cert(server_tls)


def self_signed(_ours: ssl.SSLContext, server_tls: ssl.SSLContext, folder: Path) -> None:
    load(server_tls, folder, *issue())


def without_key_identifier(client_tls: ssl.SSLContext, server_tls: ssl.SSLContext, folder: Path) -> None:
    """Install a certificate as older tools issue them, which Python 3.13 and later reject."""
    authority, key = issue(authority=True)
    client_tls.load_verify_locations(cadata=authority.public_bytes(serialization.Encoding.PEM).decode())
    client_tls.verify_flags |= ssl.VERIFY_X509_STRICT
    load(server_tls, folder, *issue(issuer=(authority, key)))


def issue(
    *, authority: bool = False, issuer: tuple[x509.Certificate, Any] | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Issue a certificate for 127.0.0.1 without key identifiers, self-signed or by an issuer."""
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


def load(server_tls: ssl.SSLContext, folder: Path, certificate: x509.Certificate, key: Any) -> None:
    path = folder / "server.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    server_tls.load_cert_chain(path)


@pytest.mark.parametrize(
    ("certificate", "reason", "remedy"),
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
async def test_an_error_says_why_a_certificate_is_not_trusted(tmp_path, certificate, reason, remedy):
    """The error has OpenSSL's reason and the remedy; it affects all requests, so a batch stops."""
    client_tls, server_tls = ssl.create_default_context(), server_context()
    certificate(client_tls, server_tls, tmp_path)
    async with (
        echoing(server_tls) as (url, received_requests, _),
        RelayClient(OWNER, base_url=url, ssl=client_tls, retry=ONCE) as client,
    ):
        requests = RelayCreateRequest.fan_out(["t"], [f"p{n}" for n in range(100)])
        result = await client.relay.create_many(requests, concurrency=2)
    assert received_requests == []
    assert len(result.failed) < 10
    error = result.failed[0].error
    assert isinstance(error, NotSentError)
    host = url.partition("://")[2]
    text = str(error)
    assert f"the certificate of {host} isn't trusted: " in text
    assert reason in text
    with pytest.raises(NotSentError, match=remedy):
        raise error


# ----------------------------------------------------------------------- the client's certificate


def authenticating(version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return contexts of a client, and of a server that requires a certificate of one authority."""
    authority, client_tls, server_tls = trustme.CA(), ssl.create_default_context(), server_context()
    authority.configure_trust(client_tls)
    authority.configure_trust(server_tls)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    server_tls.verify_mode = ssl.CERT_REQUIRED
    server_tls.minimum_version = server_tls.maximum_version = version
    return client_tls, server_tls


@BOTH
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("certificate", ["none", "another authority's"])
async def test_a_server_that_rejects_the_client_has_executed_nothing(direct, version, certificate):
    """In TLS 1.3, too, where the alert arrives after the request: it is not sent, and the batch stops."""
    client_tls, server_tls = authenticating(version)
    if certificate != "none":
        trustme.CA().issue_cert("me@lender.example").configure_cert(client_tls)
    received_requests: list[bytes] = []
    with tls_server(server_tls, lambda connection: received_requests.append(connection.recv(1))) as address:
        async with RelayClient(
            OWNER, base_url=f"https://{address}", ssl=client_tls, retry=QUICK, direct=direct
        ) as client:
            requests = RelayCreateRequest.fan_out(["t"], [f"p{n}" for n in range(100)])
            result = await client.relay.create_many(requests, concurrency=2)
    assert received_requests == []
    assert not result.unknown
    assert len(result.failed) < 10
    with pytest.raises(NotSentError, match=r"TLS with .* failed: .*load_cert_chain"):
        raise result.failed[0].error


def read_request(connection: ssl.SSLSocket) -> None:
    received_requests = b""
    while not received_requests.endswith(b"}"):
        received_requests += connection.recv(65_536)


@BOTH
@pytest.mark.parametrize("earlier_responses", [0, 1], ids=["on a new connection", "on a used one"])
async def test_a_rejection_after_the_request_was_read_proves_nothing(direct, earlier_responses):
    """A server that requests a certificate later may have executed the request: it is unknown."""
    client_tls, server_tls = authenticating(ssl.TLSVersion.TLSv1_3)
    client_tls.post_handshake_auth = server_tls.post_handshake_auth = True
    executed: list[str] = []

    def serve(connection: ssl.SSLSocket) -> None:
        for _ in range(earlier_responses):
            read_request(connection)
            connection.sendall(OK)
        read_request(connection)
        executed.append("a creation")
        connection.verify_client_post_handshake()
        connection.sendall(b"")  # sends the request for the certificate
        connection.do_handshake()
        connection.recv(1)

    with tls_server(server_tls, serve) as address:
        async with RelayClient(
            OWNER, base_url=f"https://{address}", ssl=client_tls, retry=QUICK, direct=direct
        ) as client:
            for _ in range(earlier_responses):
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
    """It does for the first request of a TLS 1.3 connection, and for no other request."""
    error = aiohttp.ClientOSError(1, f"[SSL: {reason}] words of OpenSSL's (_ssl.c:1)")
    authority, client_tls, server_tls = trustme.CA(), ssl.create_default_context(), server_context()
    authority.configure_trust(client_tls)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    client_tls.maximum_version = version
    async with echoing(server_tls) as (url, _, _), aiohttp.ClientSession() as session:
        connection = await session.connector.connect(
            aiohttp.ClientRequest(
                "POST", aiohttp.client.URL(url), loop=asyncio.get_running_loop(), ssl=client_tls
            ),
            traces=[],
            timeout=aiohttp.ClientTimeout(),
        )
        first, second = RequestBody(b"{}", lambda: None), RequestBody(b"{}", lambda: None)
        if not first.begin_send(connection.protocol):
            await finish_handshake()
            assert first.begin_send(connection.protocol)
        assert first.was_rejected(error) is (proves and version is ssl.TLSVersion.TLSv1_3)
        assert not first.was_rejected(ConnectionResetError(104, "Connection reset by peer"))
        assert second.begin_send(connection.protocol)
        assert not second.was_rejected(error)
        # A middleware of a borrowed session may send a request twice.
        assert first.begin_send(connection.protocol)
        assert not first.was_rejected(error)
        connection.close()
