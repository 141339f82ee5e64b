"""Host names and IP addresses in their normal spelling."""

from __future__ import annotations

import pytest

from plaid_relay_async.hosts import bracketed, host_of_header, is_host, is_loopback, is_within, normalize_host


@pytest.mark.parametrize(
    ("host", "normal"),
    [
        ("Plaid.Example.", "plaid.example"),
        ("b\xfccher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("127.1", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("::FFFF:10.0.0.1", "10.0.0.1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("2001:DB8::1", "2001:db8::1"),
    ],
)
def test_a_host_has_one_normal_spelling(host, normal):
    """All spellings of a host have the same normal one, which is its own normal spelling."""
    assert normalize_host(host) == normalize_host(normal) == normal


@pytest.mark.parametrize(
    "host", ["", ".", "a b", "a/b", "a:80", "x@y", "a..b", "[::1]", "%61", "a" * 64, "1::2::3"]
)
def test_an_invalid_host_is_rejected(host):
    """Text that can't be a host raises an error, and isn't loopback."""
    with pytest.raises(ValueError, match=r"."):
        normalize_host(host)
    assert not is_loopback(host)
    assert not is_host(host)
    assert host_of_header(host) is None or host in {"a:80", "[::1]"}


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("Plaid.Example:443", "plaid.example"),
        ("[::1]:8080", "::1"),
        ("127.1", "127.0.0.1"),
        ("b\xfccher.example", None),
        ("a:b", None),
        ("a:123456", None),
        ("x@y", None),
        ("a,b", None),
        ("[::1", None),
        ("[1::2::3]", None),
    ],
)
def test_a_host_header_has_a_host_and_perhaps_a_port(header, host):
    """The port is dropped; a header with anything else has no host."""
    assert host_of_header(header) == host


def test_a_domain_contains_itself_and_names_in_it():
    """A name that only ends with the same letters isn't in the domain."""
    assert is_within("plaid.com", "plaid.com")
    assert is_within("a.plaid.com", "plaid.com")
    assert not is_within("notplaid.com", "plaid.com")


def test_an_ipv6_address_has_brackets_in_a_url():
    """Names and IPv4 addresses have none."""
    assert [bracketed(host) for host in ("::1", "127.0.0.1", "localhost")] == [
        "[::1]",
        "127.0.0.1",
        "localhost",
    ]
