"""Request bodies: a body that parsers could read differently is rejected."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from gateway_setup import running_gateway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http import CREATE, CREATE_BODY, HOST_PLACEHOLDER, build_head, build_request, encode_chunks

VALID = json.dumps(CREATE_BODY)
INVALID_BODIES = {
    "nothing": b"",
    "blanks": b"  \r\n ",
    "an array": b"[]",
    "an array of one": f"[{VALID}]".encode(),
    "a string": b'"x"',
    "a number": b"7",
    "null": b"null",
    "true": b"true",
    "cut": VALID[:-1].encode(),
    "two": (VALID + VALID).encode(),
    "two lines": f"{VALID}\n{VALID}".encode(),
    "with more behind it": f"{VALID} x".encode(),
    "a NUL behind it": VALID.encode() + b"\0",
    "a comma too many": b'{"a": 1,}',
    "a comment": b'{"a": 1} // x',
    "single quotes": b"{'a': 1}",
    "no quotes": b"{a: 1}",
    "a form": b"secret=x&secondary_client_id=p1",
    "a form that looks like JSON": b'{"secret": "x", "a": "=b"}&x=1',
    "with a mark before it": b"\xef\xbb\xbf" + VALID.encode(),
    "UTF-16": VALID.encode("utf-16"),
    "UTF-16, bare": VALID.encode("utf-16-le"),
    "UTF-32": VALID.encode("utf-32"),
    "Latin-1": '{"a": "é"}'.encode("latin-1"),
    "UTF-7": '{"a": "é"}'.encode("utf-7").replace(b"{", b"+AHs-"),
    "overlong": b'{"a": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "a control character in a string": b'{"a": "\n"}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": [Infinity]}',
    "-Infinity": b'{"a": {"b": -Infinity}}',
    "a name twice": b'{"a": 1, "a": 1}',
    "a name twice, deep": b'{"a": [{"b": 1, "b": 2}]}',
    "a name twice, by escapes": rb'{"secondary_client_id": "p1", "\u0073econdary_client_id": "p2"}',
    "the secret twice": b'{"secret": "x", "secret": "y"}',
    "nested too deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "arrays nested too deep": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "brackets without an end": b'{"a":' + b"[" * 500_000,
    "names nested without an end": b'{"a":' * 150_000,
    "a number of ten thousand digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "a leading zero": b'{"a": 01}',
    "hex": b'{"a": 0x1}',
}


@pytest.mark.parametrize("body", INVALID_BODIES.values(), ids=INVALID_BODIES)
async def test_a_body_other_than_one_json_object_is_rejected(setup, body):
    """A body that two parsers might read in two ways gets a 400, and nothing is forwarded."""
    response = await setup.call(body=body)
    assert (response.status, response.error_code) == (400, "INVALID_BODY")
    assert response.json["error_message"]
    assert response.json["suggested_action"]
    setup.assert_upstream_requests()


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e400", "1" * 400 + ".5", "1e99999999999"])
async def test_a_number_beyond_floats_is_rejected_or_preserved(setup, number):
    """It is never forwarded as Infinity, which isn't JSON."""
    response = await setup.call(body=f'{{"a": {number}}}'.encode())
    assert response.status in {200, 400}
    if response.status == 200:
        assert number.encode() in setup.upstream.requests[-1]
    else:
        setup.assert_upstream_requests()


async def test_a_lone_surrogate_is_rejected_or_preserved(setup):
    """A character that UTF-8 can't encode causes no error in the gateway."""
    response = await setup.call(body=rb'{"a": "\ud800", "secondary_client_id": "\udfff"}')
    assert response.status in {200, 400}


async def test_the_body_is_forwarded_completely(setup):
    """Everything except the caller's credentials is forwarded unchanged."""
    members = {
        "report_tokens": ["assets-sandbox-\u00e9\u4f60\U0001f600", ""],
        "secondary_client_id": "p1",
        "webhook": None,
        "options": {"secret": "its own", "client_id": 7, "deep": [{"secret": [1, -2, 0.5, True, False]}]},
        "big": 2**63 + 1,
    }
    assert (await setup.call(body=members)).status == 200
    assert setup.upstream.body() == members


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["client_id", "secret", "secondary_client_id", "report_tokens"]) | st.text(max_size=8)


async def test_any_object_arrives_without_the_callers_credentials(setup):
    """For any JSON object, what is forwarded equals it except for `client_id` and `secret` at the top level."""

    @given(st.dictionaries(NAMES, JSON, max_size=5))
    def collect(members):
        examples.append(members)

    examples: list[dict] = []
    settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
        collect
    )()
    for members in examples:
        response = await setup.call(body=members)
        assert response.status == 200
        assert setup.upstream.body() == {k: v for k, v in members.items() if k not in {"client_id", "secret"}}


OTHER_TYPES = [
    None,
    "",
    "text/plain",
    "text/plain;charset=UTF-8",
    "text/plain; application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/json",
    "application/jsonx",
    "application/json-patch+json",
    "application/problem+json",
    "application/json, text/plain",
    "text/plain, application/json",
    "application /json",
    "application",
    "json",
    "*/*",
    "application/*",
]


@pytest.mark.parametrize("kind", OTHER_TYPES, ids=repr)
async def test_only_json_is_accepted(setup, kind):
    """A page of another site can send the content types of forms without a preflight, so only JSON is accepted."""
    response = await setup.exchange_one(build_request(content_type=kind, key=setup.keys["lender"]))
    assert (response.status, response.error_code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    setup.assert_upstream_requests()


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"]
)
async def test_json_may_have_a_charset(setup, kind):
    """The content types that Plaid's clients send are accepted."""
    assert (
        await setup.exchange_one(build_request(content_type=kind, key=setup.keys["lender"]))
    ).status == 200


COMPRESSED = {
    "gzip": gzip.compress(VALID.encode()),
    "deflate": zlib.compress(VALID.encode()),
    "br": b"\x0b\x02\x80{}\x03",
    "zstd": b"(\xb5/\xfd",
    "gzip, gzip": gzip.compress(gzip.compress(VALID.encode())),
    "x": VALID.encode(),
}


@pytest.mark.parametrize("encoding", COMPRESSED)
async def test_compressed_bodies_are_rejected(setup, encoding):
    """Because nothing is decompressed, no decompression bomb works."""
    response = await setup.exchange_one(
        build_request(CREATE, COMPRESSED[encoding], f"Content-Encoding: {encoding}", key=setup.keys["lender"])
    )
    assert (response.status, response.error_code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    setup.assert_upstream_requests()


async def test_a_decompression_bomb_is_rejected(setup):
    """It is rejected without being decompressed."""
    compressor = zlib.compressobj(wbits=31)
    piece = b" " * 2**20
    bomb = b"".join(compressor.compress(piece) for _ in range(200)) + compressor.flush()
    response = await setup.exchange_one(
        build_request(CREATE, bomb, "Content-Encoding: gzip", key=setup.keys["lender"])
    )
    assert response.status == 415
    setup.assert_upstream_requests()


@pytest.mark.parametrize("frame", ["length", "chunks"])
async def test_a_body_of_one_mebibyte_is_accepted_and_a_longer_one_is_not(frame):
    """The limit is exact, and counts the bytes that arrive."""
    for size, status in ((2**20, 200), (2**20 + 1, 413)):
        async with running_gateway() as setup:
            body = VALID.encode() + b" " * (size - len(VALID))
            if frame == "length":
                responses = await setup.exchange(build_request(body=body, key=setup.keys["lender"]))
            else:
                lines = [
                    f"Host: {HOST_PLACEHOLDER}",
                    "Content-Type: application/json",
                    "Transfer-Encoding: chunked",
                ]
                lines += [f"Authorization: Bearer {setup.keys['lender']}", "Connection: close"]
                responses = await setup.exchange(
                    build_head(f"POST {CREATE} HTTP/1.1", *lines), encode_chunks(body)
                )
            assert responses[0].status == status
            assert responses[0].error_code == (None if status == 200 else "BODY_TOO_LARGE")
            setup.assert_upstream_requests(count=status == 200)


@pytest.mark.parametrize(
    "name",
    [
        "Secondary_Client_Id",
        "SECONDARY_CLIENT_ID",
        "\u017fecondary_client_id",
        "\uff53econdary_client_id",
        "\u017fecret",
        "CLIENT_ID",
        "client\uff3fid",
        "Report_Tokens",
        "Options",
        "secondaryClientId",
        "secondary-client-id",
        "secret\x00",
        " secret ",
        "se\u200bcret",
        "secondary_client_id\ufe00",
    ],
)
async def test_a_variant_spelling_of_a_plaid_member_is_rejected(setup, name):
    """A less strict server would read a partner or a secret that the gateway didn't check."""
    for body in ({name: "other"} | CREATE_BODY, CREATE_BODY | {name: "other"}):
        response = await setup.call(body=body)
        assert (response.status, response.error_code) == (400, "AMBIGUOUS_MEMBER")
    setup.assert_upstream_requests()


async def test_unknown_members_may_have_any_spelling(setup):
    """Plaid may add members at any time."""
    assert (await setup.call(body=CREATE_BODY | {"New_Member": 1, "\u017f": 2})).status == 200
