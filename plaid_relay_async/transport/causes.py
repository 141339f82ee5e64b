"""Causes of failed attempts, without the texts of aiohttp, which may contain a proxy's password."""

from __future__ import annotations

import asyncio
import http
import ssl
from typing import Final

import aiohttp
from attrs import frozen

from plaid_relay_async.exchange import tls_reason


@frozen
class FailureCause:
    """Why an attempt failed.

    Attributes:
        phrase: the reason, as part of a sentence.
        advice: what to do about it, if there is a better remedy than to try again.
        shared: whether every other request would fail in the same way.
    """

    phrase: str
    advice: str | None = None
    shared: bool = False


_PHRASES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (asyncio.CancelledError, "the call was cancelled"),
    (TimeoutError, "time ran out"),
    (aiohttp.ServerDisconnectedError, "the connection was closed before a response arrived"),
    (aiohttp.ClientConnectorError, "no connection can be made"),
    (aiohttp.ClientOSError, "the connection failed"),
    (OSError, "the connection failed"),
    (aiohttp.ClientPayloadError, "the response broke off"),
    (aiohttp.ClientResponseError, "the response isn't HTTP"),
    (aiohttp.http.HttpProcessingError, "the response isn't HTTP"),
    (aiohttp.ClientConnectionError, "the connection failed"),
)

_PROXY_ADVICE: Final = (
    "Check the proxy's URL, and ask its operator to allow the host. NO_PROXY=host, or an empty proxy URL, "
    "bypasses the proxy."
)
_TLS_ADVICE: Final = "Check the address, and whether an intermediary intercepts TLS."
_TRUST_ADVICE: Final = (
    "To trust your own certificate authority, set SSL_CERT_FILE to a file that contains it, or pass "
    "ssl=ssl.create_default_context(cafile=...)."
)
_CLIENT_CERTIFICATE_ADVICE: Final = (
    "The server requires a client certificate that it trusts: pass ssl= with a context that has one "
    "(load_cert_chain)."
)
_OTHER_NAME_ADVICE: Final = "Call the server by a name that its certificate contains."
_STRICT_ADVICE: Final = (
    "Python 3.13 and later reject such certificates: have a new one issued, or pass ssl= with a context "
    "without ssl.VERIFY_X509_STRICT."
)

# By OpenSSL's X509_V_ERR_ numbers, which are part of its ABI.
_ADVICE_BY_VERIFY_CODE: Final = {
    9: "Check this machine's clock.",
    10: "The server's certificate has to be renewed, or this machine's clock is wrong.",
    62: _OTHER_NAME_ADVICE,
    64: _OTHER_NAME_ADVICE,
    **dict.fromkeys(range(79, 95), _STRICT_ADVICE),
}
_ADVICE_BY_TLS_REASON: Final = {
    "WRONG_VERSION_NUMBER": "The server doesn't use TLS on this port: check the scheme and the port.",
    "TLSV1_ALERT_PROTOCOL_VERSION": "Client and server have no version of TLS in common.",
    "UNSUPPORTED_PROTOCOL": "Client and server have no version of TLS in common.",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _CLIENT_CERTIFICATE_ADVICE,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        f"Client and server have no cipher in common, or: {_CLIENT_CERTIFICATE_ADVICE}"
    ),
    "SSLV3_ALERT_BAD_CERTIFICATE": _CLIENT_CERTIFICATE_ADVICE,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _CLIENT_CERTIFICATE_ADVICE,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _CLIENT_CERTIFICATE_ADVICE,
    "TLSV1_ALERT_UNKNOWN_CA": _CLIENT_CERTIFICATE_ADVICE,
}


def failure_cause(error: BaseException, *, proxied: bool) -> FailureCause:
    """Return why an attempt ended in an error; `proxied` is whether it used a known proxy."""
    if (reason := tls_reason(error)) is not None:
        return _tls_failure(error, reason)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _proxy_failure(error.status)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return FailureCause("the proxy can't be reached", _PROXY_ADVICE, shared=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        # With a proxy, this is the proxy's name; the proxy itself resolves the server's name.
        return FailureCause(
            f"the name {error.host} isn't known", _PROXY_ADVICE if proxied else None, shared=proxied
        )
    return FailureCause(
        next((phrase for cls, phrase in _PHRASES if isinstance(error, cls)), "the request failed")
    )


def _tls_failure(error: BaseException, reason: str) -> FailureCause:
    server = f"{error.host}:{error.port}" if isinstance(error, aiohttp.ClientConnectorError) else "the server"
    failure = getattr(error, "certificate_error", None)
    if isinstance(failure, ssl.SSLCertVerificationError):
        problem = failure.verify_message.rstrip(".")
        advice = _ADVICE_BY_VERIFY_CODE.get(failure.verify_code, _TRUST_ADVICE)
        return FailureCause(f"the certificate of {server} isn't trusted: {problem}", advice, shared=True)
    text = reason.replace("_", " ").lower()
    return FailureCause(
        f"TLS with {server} failed: {text}", _ADVICE_BY_TLS_REASON.get(reason, _TLS_ADVICE), shared=True
    )


def _proxy_failure(status: int) -> FailureCause:
    phrase = f"the proxy responded with {status}"
    if status == http.HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        advice = "Put the proxy's user and password, percent-encoded, into its URL."
        return FailureCause(f"{phrase}: the user or the password is missing or wrong", advice, shared=True)
    return FailureCause(phrase, _PROXY_ADVICE, shared=True)
