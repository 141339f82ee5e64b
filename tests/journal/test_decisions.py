"""The decision on a pair, as a table, without a database or a server."""

from __future__ import annotations

import pytest
from attrs import evolve

from plaid_relay_async.journal.decisions import (
    RECORD_OUTCOMES,
    PairPolicy,
    RejectDuplicate,
    Row,
    ServeRecorded,
    StartAttempt,
    WaitForOther,
    decide,
    outcome_name,
)
from plaid_relay_async.journal.schema import CreationState


def row(state, *, run=1, number=1, token="t", holds_pair=True, error=None, retrieved_at=None):
    return Row(
        id=number,
        run_id=run,
        pair="p",
        partner="p",
        state=state,
        current=True,
        holds_pair=holds_pair,
        worker_id=1,
        begun_at=None,
        ended_at=None,
        attempts=1,
        request_id=None,
        error=error,
        error_type=None,
        error_code=None,
        status=None,
        token=token if state is CreationState.CREATED else None,
        token_digest=None,
        retrieved_at=retrieved_at,
    )


STARTABLE = row(CreationState.FAILED, holds_pair=False, error="NotSentError")
OTHER_RUN = row(CreationState.UNKNOWN, run=2, number=2)
OWN = row(CreationState.UNKNOWN)


@pytest.mark.parametrize(
    ("own", "holding", "retry", "in_progress", "maybe_in_flight", "decision"),
    [
        (None, None, False, False, False, StartAttempt()),
        (STARTABLE, None, False, False, False, StartAttempt(STARTABLE)),
        (evolve(STARTABLE, error="InvalidRequestError"), None, True, False, False, "serve own"),
        (evolve(OWN, holds_pair=False), None, False, False, False, "serve own"),
        (evolve(OWN, holds_pair=False), None, True, False, False, "retire own"),
        (row(CreationState.HELD_ELSEWHERE, holds_pair=False), None, False, False, False, "start in own"),
        (row(CreationState.CREATED, holds_pair=False), None, False, False, False, "serve own"),
        (None, row(CreationState.INTENT, run=2), True, True, False, WaitForOther()),
        (None, row(CreationState.INTENT, run=2), True, False, True, WaitForOther()),
        (None, row(CreationState.INTENT, run=2), False, False, True, "serve holding"),
        (None, OTHER_RUN, True, False, False, "retire holding"),
        (OWN, OWN, True, False, False, "retire holding"),
        (STARTABLE, OTHER_RUN, True, False, False, StartAttempt(STARTABLE, (OTHER_RUN,))),
        (
            evolve(OWN, holds_pair=False),
            OTHER_RUN,
            True,
            False,
            False,
            StartAttempt(retire=(OTHER_RUN, evolve(OWN, holds_pair=False))),
        ),
        (None, row(CreationState.REMOVING, run=2), False, False, False, "refuse"),
        (None, row(CreationState.REMOVING), True, False, False, "refuse"),
        (None, row(CreationState.REMOVING, run=2), False, True, False, WaitForOther()),
        (
            row(CreationState.REMOVING, holds_pair=False),
            row(CreationState.CREATED, run=2),
            False,
            True,
            False,
            WaitForOther(),
        ),
        (row(CreationState.INTENT, holds_pair=False), None, False, False, False, "serve own"),
        (row(CreationState.INTENT, holds_pair=False), None, True, False, False, "retire own"),
        (
            row(CreationState.INTENT, holds_pair=False),
            row(CreationState.REMOVING, run=2),
            False,
            False,
            False,
            "refuse",
        ),
        (
            row(CreationState.INTENT, holds_pair=False),
            row(CreationState.CREATED, number=2),
            True,
            False,
            True,
            "serve holding",
        ),
        (row(CreationState.REMOVED, holds_pair=False), None, False, False, False, "retire own"),
    ],
)
def test_the_decision_on_a_pair(own, holding, retry, in_progress, maybe_in_flight, decision):
    """The decision follows from the run's own row and the row that holds the pair."""
    decisions = {
        "serve own": ServeRecorded(own),
        "serve holding": ServeRecorded(holding),
        "retire own": StartAttempt(retire=(own,)),
        "retire holding": StartAttempt(retire=(holding,)),
        "start in own": StartAttempt(own),
    }
    actual = decide(
        own, holding, PairPolicy(1, "reuse", retry), in_progress=in_progress, maybe_in_flight=maybe_in_flight
    )
    if decision == "refuse":
        assert isinstance(actual, RejectDuplicate)
    else:
        assert actual == (decisions[decision] if isinstance(decision, str) else decision)


@pytest.mark.parametrize("own", [evolve(OWN, holds_pair=False), row(CreationState.INTENT, holds_pair=False)])
def test_the_runs_own_doubt_is_not_ignored_for_another_token(own):
    """on_existing="create" is about tokens: an attempt in doubt isn't replaced without retry_unknown."""
    others = row(CreationState.CREATED, run=2, number=2)
    policy = PairPolicy(1, "create", retry_unknown=False)
    assert decide(own, others, policy, in_progress=False, maybe_in_flight=False) == ServeRecorded(own)
    policy = evolve(policy, retry_unknown=True)
    assert decide(own, others, policy, in_progress=False, maybe_in_flight=False) == StartAttempt(
        retire=(others, own)
    )


def decide_for(
    own, holding, on_existing="reuse", *, retry_unknown=False, retry_failed=False, maybe_in_flight=False
):
    policy = PairPolicy(1, on_existing, retry_unknown, retry_failed)
    return decide(own, holding, policy, in_progress=False, maybe_in_flight=maybe_in_flight)


@pytest.mark.parametrize(
    "state", [CreationState.CREATED, CreationState.REMOVING], ids=["forgotten", "removal unknown"]
)
def test_a_token_that_cannot_be_returned_counts_until_it_is_removed(state):
    """Its own run is rejected in any case, and another run unless on_existing="create" is set."""
    token, others = row(state, token=None), row(CreationState.CREATED, run=2, number=2)
    for settings in ({}, {"retry_unknown": True, "retry_failed": True}):
        for on_existing in ("reuse", "refuse", "create"):
            assert isinstance(decide_for(token, token, on_existing, **settings), RejectDuplicate)
        assert isinstance(decide_for(None, evolve(token, run_id=2), **settings), RejectDuplicate)
        assert isinstance(
            decide_for(evolve(token, holds_pair=False), others, "create", **settings), RejectDuplicate
        )
    assert decide_for(None, evolve(token, run_id=2), "create") == StartAttempt(
        retire=(evolve(token, run_id=2),)
    )
    assert decide_for(evolve(token, holds_pair=False), others) == ServeRecorded(others)


def test_a_doubt_that_may_be_in_flight_is_waited_for():
    """This also applies if another run's token holds the pair."""
    own, others = row(CreationState.INTENT, holds_pair=False), row(CreationState.CREATED, run=2, number=2)
    assert decide_for(own, others, "create", retry_unknown=True, maybe_in_flight=True) == WaitForOther()
    assert decide_for(own, others, "create", retry_unknown=True) == StartAttempt(retire=(others, own))


def test_a_permanent_failure_is_returned_until_retry_failed():
    """It is attempted again only with retry_failed, and not while the pair is in doubt."""
    failed = row(CreationState.FAILED, error="InvalidRequestError", holds_pair=False)
    others = row(CreationState.CREATED, run=2, number=2)
    assert decide_for(failed, None) == decide_for(failed, others, "create") == ServeRecorded(failed)
    assert decide_for(failed, None, retry_failed=True) == StartAttempt(failed)
    assert decide_for(failed, others, "create", retry_failed=True) == StartAttempt(failed, retire=(others,))
    assert decide_for(failed, OTHER_RUN, retry_failed=True) == ServeRecorded(OTHER_RUN)
    assert decide_for(failed, OTHER_RUN, retry_unknown=True) == StartAttempt(failed, retire=(OTHER_RUN,))


def test_an_unknown_pair_with_a_token_is_not_created_again():
    """Its outcome is unknown, and with retry_unknown it is a duplicate; only another run may add a token."""
    for state in (CreationState.UNKNOWN, CreationState.INTENT):
        proven = row(state, error="OutcomeUnknownError", retrieved_at=1.0)
        others = evolve(proven, run_id=2, id=2)
        for on_existing in ("reuse", "refuse", "create"):
            assert decide_for(proven, proven, on_existing) == ServeRecorded(proven)
            rejected = decide_for(proven, proven, on_existing, retry_unknown=True, maybe_in_flight=True)
            assert isinstance(rejected, RejectDuplicate)
            assert 'on_existing="create"' in rejected.advice
        assert decide_for(None, others) == decide_for(None, others, "refuse") == ServeRecorded(others)
        assert isinstance(decide_for(None, others, retry_unknown=True), RejectDuplicate)
        for settings in ({}, {"retry_unknown": True}):
            assert decide_for(None, others, "create", **settings) == StartAttempt(retire=(others,))
            assert decide_for(STARTABLE, others, "create", **settings) == StartAttempt(STARTABLE, (others,))
        assert "a token exists: the partner has retrieved" in str(proven.in_doubt_error())
        assert "a token exists" not in str(evolve(proven, retrieved_at=None).in_doubt_error())


def test_an_unknown_pair_with_a_token_beside_other_rows():
    """A token of another run can be reused; the run's own attempt in doubt is retried only on request."""
    own = row(CreationState.UNKNOWN, holds_pair=False, retrieved_at=1.0)
    token = row(CreationState.CREATED, run=2, number=2)
    assert decide_for(own, token) == decide_for(own, token, retry_unknown=True) == ServeRecorded(token)
    assert isinstance(decide_for(own, token, "refuse"), RejectDuplicate)
    assert decide_for(own, token, "create") == ServeRecorded(own)
    assert isinstance(decide_for(own, token, "create", retry_unknown=True), RejectDuplicate)
    doubt, others = evolve(own, retrieved_at=None), evolve(OTHER_RUN, retrieved_at=1.0)
    assert decide_for(doubt, others, "create") == ServeRecorded(doubt)
    assert decide_for(doubt, others, "create", retry_unknown=True) == StartAttempt(retire=(others, doubt))
    assert isinstance(decide_for(doubt, others, retry_unknown=True), RejectDuplicate)
    failed = row(CreationState.FAILED, error="InvalidRequestError", holds_pair=False)
    assert decide_for(failed, others, "create", retry_unknown=True) == ServeRecorded(failed)
    removing = row(CreationState.REMOVING, holds_pair=False)
    assert decide_for(removing, others, "create") == ServeRecorded(others)
    assert isinstance(decide_for(removing, others, "create", retry_unknown=True), RejectDuplicate)


def test_an_undone_attempt_to_add_a_token_is_not_attempted():
    """The run has no attempt in doubt: the other run's token is known to exist."""
    others = evolve(OTHER_RUN, retrieved_at=1.0)
    undone = decide_for(None, others, "create").values_to_restore(1)
    assert undone["state"] is CreationState.NOT_ATTEMPTED


def test_each_outcome_of_a_record_has_a_known_name():
    """The names by which records can be selected are those that records have."""
    names = {outcome_name(state, alive=alive) for state in CreationState for alive in (True, False)}
    assert names == set(RECORD_OUTCOMES)
