"""Bodies: one reading of them, or none."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from gateway_setup import running_gateway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http import CREATE, CREATE_BODY, HOST_PLACEHOLDER, build_head, build_request, encode_chunks

GOOD = json.dumps(CREATE_BODY)
NO_OBJECT = {
    "nothing": b"",
    "blanks": b"  \r\n ",
    "an array": b"[]",
    "an array of one": f"[{GOOD}]".encode(),
    "a string": b'"x"',
    "a number": b"7",
    "null": b"null",
    "true": b"true",
    "cut": GOOD[:-1].encode(),
    "two": (GOOD + GOOD).encode(),
    "two lines": f"{GOOD}\n{GOOD}".encode(),
    "with more behind it": f"{GOOD} x".encode(),
    "a NUL behind it": GOOD.encode() + b"\0",
    "a comma too many": b'{"a": 1,}',
    "a comment": b'{"a": 1} // x',
    "single quotes": b"{'a': 1}",
    "no quotes": b"{a: 1}",
    "a form": b"secret=x&secondary_client_id=p1",
    "a form that looks like JSON": b'{"secret": "x", "a": "=b"}&x=1',
    "with a mark before it": b"\xef\xbb\xbf" + GOOD.encode(),
    "UTF-16": GOOD.encode("utf-16"),
    "UTF-16, bare": GOOD.encode("utf-16-le"),
    "UTF-32": GOOD.encode("utf-32"),
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


@pytest.mark.parametrize("body", NO_OBJECT.values(), ids=NO_OBJECT)
async def test_what_is_not_one_json_object_is_refused(held, body):
    """One 400 for all that two parsers might read in two ways, and none of it leaves."""
    answer = await held.call(body=body)
    assert (answer.status, answer.code) == (400, "INVALID_BODY")
    assert answer.json["error_message"]
    assert answer.json["suggested_action"]
    held.assert_upstream_requests()


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e400", "1" * 400 + ".5", "1e99999999999"])
async def test_a_number_beyond_floats_is_refused_or_kept(held, number):
    """It never becomes Infinity, which is no JSON, on the way."""
    answer = await held.call(body=f'{{"a": {number}}}'.encode())
    assert answer.status in {200, 400}
    if answer.status == 200:
        assert number.encode() in held.upstream.requests[-1]
    else:
        held.assert_upstream_requests()


async def test_a_lone_surrogate_harms_nothing(held):
    """A character that no text can hold is refused, or goes on as it came."""
    answer = await held.call(body=rb'{"a": "\ud800", "secondary_client_id": "\udfff"}')
    assert answer.status in {200, 400}


async def test_the_body_goes_on_whole(held):
    """All that the caller says but for its credentials arrives, to the last digit and letter."""
    said = {
        "report_tokens": ["assets-sandbox-\u00e9\u4f60\U0001f600", ""],
        "secondary_client_id": "p1",
        "webhook": None,
        "options": {"secret": "its own", "client_id": 7, "deep": [{"secret": [1, -2, 0.5, True, False]}]},
        "big": 2**63 + 1,
    }
    assert (await held.call(body=said)).status == 200
    assert held.upstream.body() == said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["client_id", "secret", "secondary_client_id", "report_tokens"]) | st.text(max_size=8)


async def test_any_object_arrives_without_the_callers_credentials(held):
    """Whatever the JSON: what leaves is equal to it, but for `client_id` and `secret` at its top."""

    @given(st.dictionaries(NAMES, JSON, max_size=5))
    def gather(said):
        drawn.append(said)

    drawn: list[dict] = []
    settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))(gather)()
    for said in drawn:
        answer = await held.call(body=said)
        assert answer.status == 200
        assert held.upstream.body() == {k: v for k, v in said.items() if k not in {"client_id", "secret"}}


KINDS = [
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


@pytest.mark.parametrize("kind", KINDS, ids=repr)
async def test_only_json_is_taken(held, kind):
    """A page elsewhere can send these three kinds without asking first, and so none but JSON is taken."""
    answer = await held.one(build_request(content_type=kind, key=held.keys["lender"]))
    assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    held.assert_upstream_requests()


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"]
)
async def test_json_may_name_its_charset(held, kind):
    """What Plaid's clients send passes."""
    assert (await held.one(build_request(content_type=kind, key=held.keys["lender"]))).status == 200


ZIPPED = {
    "gzip": gzip.compress(GOOD.encode()),
    "deflate": zlib.compress(GOOD.encode()),
    "br": b"\x0b\x02\x80{}\x03",
    "zstd": b"(\xb5/\xfd",
    "gzip, gzip": gzip.compress(gzip.compress(GOOD.encode())),
    "x": GOOD.encode(),
}


@pytest.mark.parametrize("encoding", ZIPPED)
async def test_nothing_that_is_zipped_is_taken(held, encoding):
    """Where nothing is unzipped no bomb goes off."""
    answer = await held.one(
        build_request(CREATE, ZIPPED[encoding], f"Content-Encoding: {encoding}", key=held.keys["lender"])
    )
    assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    held.assert_upstream_requests()


async def test_a_bomb_does_not_go_off(held):
    """A gigabyte in a megabyte is refused unopened."""
    zipper = zlib.compressobj(wbits=31)
    piece = b" " * 2**20
    bomb = b"".join(zipper.compress(piece) for _ in range(200)) + zipper.flush()
    answer = await held.one(build_request(CREATE, bomb, "Content-Encoding: gzip", key=held.keys["lender"]))
    assert answer.status == 415
    held.assert_upstream_requests()


@pytest.mark.parametrize("frame", ["length", "chunks"])
async def test_a_mebibyte_is_taken_and_a_byte_more_is_not(frame):
    """The bound is to the byte, and by the bytes that came."""
    for size, status in ((2**20, 200), (2**20 + 1, 413)):
        async with running_gateway() as held:
            body = GOOD.encode() + b" " * (size - len(GOOD))
            if frame == "length":
                answers = await held.exchange(build_request(body=body, key=held.keys["lender"]))
            else:
                lines = [
                    f"Host: {HOST_PLACEHOLDER}",
                    "Content-Type: application/json",
                    "Transfer-Encoding: chunked",
                ]
                lines += [f"Authorization: Bearer {held.keys['lender']}", "Connection: close"]
                answers = await held.exchange(
                    build_head(f"POST {CREATE} HTTP/1.1", *lines), encode_chunks(body)
                )
            assert answers[0].status == status
            assert answers[0].error_code == (None if status == 200 else "BODY_TOO_LARGE")
            held.assert_upstream_requests(count=status == 200)


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
async def test_another_spelling_of_a_known_member_is_refused(held, name):
    """A server that reads names less strictly would find a partner or a secret that wasn't checked."""
    for body in ({name: "other"} | CREATE_BODY, CREATE_BODY | {name: "other"}):
        answer = await held.call(body=body)
        assert (answer.status, answer.code) == (400, "AMBIGUOUS_MEMBER")
    held.assert_upstream_requests()


async def test_unknown_members_may_be_written_in_any_way(held):
    """Plaid may add members at any time."""
    assert (await held.call(body=CREATE_BODY | {"New_Member": 1, "\u017f": 2})).status == 200
