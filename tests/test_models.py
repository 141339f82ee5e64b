from __future__ import annotations

import pytest
from attrs import fields, has
from hypothesis import given
from hypothesis import strategies as st

from plaid_relay_async import InvalidRequestError, RelayCreateRequest, models

TOKEN = "assets-sandbox-11111111-1111-1111-1111-111111111111"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((TOKEN, "p"), "report_tokens must be a list of strings, not str: write [it]"),
        ((b"x", "p"), "report_tokens must be a list of strings, not bytes"),
        ((5, "p"), "report_tokens must be a list of strings, not int"),
        (([], "p"), "report_tokens is empty"),
        (([""], "p"), "report_tokens[0] is empty"),
        (([None], "p"), "report_tokens[0] must be a string, not NoneType"),
        ((["a b"], "p"), "report_tokens[0] holds white space"),
        (([TOKEN, TOKEN + "2"], "p"), "two asset report tokens"),
        (([TOKEN], ""), "secondary_client_id is empty"),
        (([TOKEN], None), "secondary_client_id must be a string, not NoneType"),
        (([TOKEN], "p\n"), "secondary_client_id holds white space or control characters: strip it"),
        (([TOKEN], "p", "ftp://x"), "webhook must be an http(s) URL"),
        (([TOKEN], "p", "https://"), "webhook must be an http(s) URL"),
        (([TOKEN], "p", "https://[x"), "webhook must be an http(s) URL"),
        (([TOKEN], "p", 5), "webhook must be a string"),
    ],
)
def test_a_bad_creation_is_refused_by_the_name_of_its_field(arguments, problem):
    """What Plaid would refuse, or nobody means, is refused before it is sent, and without showing a token."""
    with pytest.raises(InvalidRequestError) as caught:
        RelayCreateRequest(*arguments)
    assert problem in str(caught.value)
    assert "[not sent]" in str(caught.value)
    assert TOKEN not in repr(caught.value)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            lambda: models.RelayGetRequest("t", include_insights="yes"),
            "include_insights must be True or False",
        ),
        (lambda: models.RelayGetRequest("t", report_type="assets"), "report_type must be 'asset'"),
        (lambda: models.RelayRemoveRequest(""), "relay_token is empty"),
        (lambda: models.RelayRefreshRequest("t", webhook="x"), "webhook must be an http(s) URL"),
        (
            lambda: models.AssetReportCreateRequest(["a"], 732),
            "days_requested must be a whole number from 0 to 731",
        ),
        (lambda: models.AssetReportCreateRequest(["a"], True), "days_requested must be a whole number"),
        (lambda: models.AssetReportCreateRequest(["a"] * 100, 60), "access_tokens holds 100 access tokens"),
        (lambda: models.AssetReportCreateOptions(webhook="x"), "webhook must be an http(s) URL"),
        (lambda: models.SandboxPublicTokenCreateRequest("ins_1", []), "initial_products is empty"),
    ],
)
def test_other_requests_are_checked_as_well(make, problem):
    """Each request names the field that can't pass."""
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert problem in str(caught.value)


def test_a_request_shows_no_token():
    """A request's repr has the partner and not the report."""
    assert (
        repr(RelayCreateRequest([TOKEN], "p")) == "RelayCreateRequest(secondary_client_id='p', webhook=None)"
    )


def test_every_field_that_is_a_token_is_hidden():
    """No record shows a field whose name says token, of the singular or the plural kind."""
    records = [cls for cls in vars(models).values() if models.is_record(cls)]
    assert len(records) > 20
    shown = [
        f"{cls.__name__}.{a.name}" for cls in records for a in fields(cls) if "_token" in a.name and a.repr
    ]
    assert shown == []
    assert all(has(cls) for cls in records)


def test_fan_out_is_lazy():
    """A partner is read when its request is asked for, and not before."""
    read = []

    def partners():
        for name in ("a", "b", "c"):
            read.append(name)
            yield name

    requests = RelayCreateRequest.fan_out([TOKEN], partners(), webhook="https://example.com/hook")
    assert read == []
    first = next(requests)
    assert (first.secondary_client_id, first.webhook, read) == ("a", "https://example.com/hook", ["a"])


def test_fan_out_checks_what_all_share_at_once():
    """A bad report token doesn't wait for the first partner, and a string isn't taken for a list of partners."""
    with pytest.raises(InvalidRequestError, match="report_tokens is empty"):
        RelayCreateRequest.fan_out([], ["a"])
    with pytest.raises(InvalidRequestError, match="not one string"):
        RelayCreateRequest.fan_out([TOKEN], "abc")
    with pytest.raises(InvalidRequestError, match="secondary_client_id is empty"):
        list(RelayCreateRequest.fan_out([TOKEN], ["a", ""]))


WORD = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1)


@given(token=WORD.filter(lambda t: not t.startswith("assets-")), partner=WORD)
def test_whatever_is_taken_is_kept_as_it_was(token, partner):
    """A request holds exactly the strings that it was given, of whatever script."""
    request = RelayCreateRequest([token], partner)
    assert (request.report_tokens, request.secondary_client_id) == ((token,), partner)
    assert list(models.secrets_in(request)) == [token]
