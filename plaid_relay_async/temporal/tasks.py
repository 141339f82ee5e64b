"""What a task queue and its workers exchange: the task of a call, and its result.

Both are JSON objects, which the data converter encrypts. A result has no token, unless the journal couldn't
record it: the process that receives the result reads the token from the journal. The bytes of a response that
can't be read are also in the result, and may contain a token.
"""

from __future__ import annotations

import base64
import contextlib
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Self

from attrs import asdict, astuple, evolve, field, fields, frozen

from plaid_relay_async import codec, errors
from plaid_relay_async.batch import CREATE, REMOVE, BatchOperation
from plaid_relay_async.errors import ConfigurationError, PlaidRelayError
from plaid_relay_async.journal.journal import JournalSettings
from plaid_relay_async.journal.recording import IntentKey
from plaid_relay_async.models import (
    RelayCreateRequest,
    RelayCreateResponse,
    RelayRemoveRequest,
    RelayRemoveResponse,
)
from plaid_relay_async.outcomes import Created, Failed, Removed, Unknown
from plaid_relay_async.redaction import ExpectedError, Hidden

if TYPE_CHECKING:
    from collections.abc import Mapping

# The activity types, which Temporal's own tools show.
CREATE_ACTIVITY: Final = "plaid_relay.create"
REMOVE_ACTIVITY: Final = "plaid_relay.remove"
_VERSION: Final = 1
_TOKEN_IN_JOURNAL: Final = "in the journal"  # noqa: S105  # in place of a token
# Characters; Plaid's responses have about 150. It is far below what Temporal accepts, because the database of
# its server keeps each result until the retention has passed.
_MAX_RESPONSE: Final = 100_000
# Bytes of an unreadable response, which may contain a token. An error and its causes may have it.
_MAX_BODY: Final = 100_000
_OPERATIONS: Final[dict[str, BatchOperation[Any, Any]]] = {CREATE_ACTIVITY: CREATE, REMOVE_ACTIVITY: REMOVE}
_REQUEST_FIELDS: Final = {
    RelayCreateRequest: ("report_tokens", "secondary_client_id", "webhook"),
    RelayRemoveRequest: ("relay_token",),
}


class CallNotMadeError(ExpectedError):
    """A worker has made no attempt of a call, and the same or another worker may make it."""


def check_queue_name(name: object) -> None:
    """Raise `ConfigurationError` unless the name of a task queue is valid."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ConfigurationError(
            "the name of a task queue must be a non-empty string of printable characters"
        )


def activity_of(operation: BatchOperation[Any, Any]) -> str:
    """Return the activity type of an operation."""
    return next(name for name, each in _OPERATIONS.items() if each is operation)


@frozen
class Task:
    """One call for a worker.

    Attributes:
        activity: the activity type.
        request: the request of the call.
        digest: the pair ID of a creation, or the keyed hash of the relay token to remove. A worker with
            another journal, or with the credentials of another lender, computes another one.
        settings: the run, and the settings of the journal for it.
        in_doubt: the ID of the journal's row with the attempt in doubt that the call replaces, if there is
            one. With `retry_unknown`, the worker replaces no other row, so a task that is handed out twice
            leads to one call.
    """

    activity: str
    request: RelayCreateRequest | RelayRemoveRequest
    digest: str
    settings: JournalSettings
    in_doubt: int | None

    def to_payload(self) -> dict[str, Any]:
        """Return the task as a JSON object."""
        return {
            "version": _VERSION,
            # As text, because a number in it may be a Decimal.
            "request": codec.encode_request(self.request, Hidden({})).decode(),
            "digest": self.digest,
            "settings": asdict(self.settings),
            "in_doubt": self.in_doubt,
        }

    @classmethod
    def from_payload(cls, activity: str, payload: Mapping[str, Any]) -> Self:
        """Return the task of a JSON object.

        Raises:
            ConfigurationError: another release wrote it in a form that this one doesn't know.
        """
        version = payload.get("version")
        if version == _VERSION:
            request_type = _OPERATIONS[activity].endpoint.request_type
            # A later release may have added a setting, or a rule for requests.
            with contextlib.suppress(KeyError, TypeError, ValueError):
                body = json.loads(payload["request"], parse_float=Decimal)
                known = {name: body.pop(name) for name in _REQUEST_FIELDS[request_type] if name in body}
                request = request_type(**known, extra=body or None)
                settings = JournalSettings(**payload["settings"])
                return cls(activity, request, payload["digest"], settings, payload["in_doubt"])
        raise ConfigurationError(
            f"another release of this package wrote the task (version {version!r})",
            advice="Run the same release on the workers and where the runs are started.",
        )


@frozen
class TaskResult:
    """The result of a task: how its call ended.

    Attributes:
        succeeded: whether a token was created, or removed.
        attempts: the number of attempts.
        request_id: Plaid's request ID, if a response had one.
        journalled: whether the journal has the outcome.
        error: the error, if the call didn't succeed; see `_error_payload`.
        response: the JSON of the response. It has the token of a creation only if the journal doesn't.
        intent: the row and the worker of the intent of its attempts, if the journal doesn't have the outcome;
            see `IntentKey`.
    """

    succeeded: bool
    attempts: int
    request_id: str | None
    journalled: bool
    error: dict[str, Any] | None = field(default=None, repr=False)
    response: str | None = field(default=None, repr=False)
    intent: tuple[int, int] | None = None

    @classmethod
    def of(cls, outcome: Created | Removed | Failed | Unknown, intent: IntentKey | None) -> Self:
        """Return the result that has an outcome.

        Args:
            outcome: the outcome.
            intent: the key of the intent of its attempts, if there is one.
        """
        common: dict[str, Any] = {
            "succeeded": not isinstance(outcome, Failed | Unknown),
            "attempts": outcome.attempts,
            "request_id": outcome.request_id,
            "journalled": outcome.journalled,
            "intent": None if intent is None or outcome.journalled else astuple(intent),
        }
        if isinstance(outcome, Failed | Unknown):
            return cls(**common, error=_error_payload(outcome.error))
        response: Any = outcome.response
        if isinstance(outcome, Created) and outcome.journalled:
            response = evolve(response, relay_token=_TOKEN_IN_JOURNAL)
        text = codec.to_json(response).decode()
        if len(text) > _MAX_RESPONSE:  # Temporal would reject the result, and with it the token
            text = codec.to_json(evolve(response, additional_properties={})).decode()
        return cls(**common, response=text)

    def to_payload(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Return the result of a JSON object; fields that a later release has added are ignored."""
        return cls(**{each.name: payload[each.name] for each in fields(cls) if each.name in payload})

    def created_response(self, journalled_token: str | None = None) -> RelayCreateResponse | None:
        """Return the response of a creation, or `None` if its token isn't known.

        Args:
            journalled_token: the token that the journal has.
        """
        if self.response is None:
            return None
        response = codec.from_json(self.response, RelayCreateResponse)
        if response.relay_token != _TOKEN_IN_JOURNAL:
            return response
        return None if journalled_token is None else evolve(response, relay_token=journalled_token)

    def removed_response(self) -> RelayRemoveResponse:
        """Return the response of a removal that succeeded."""
        assert self.response is not None  # noqa: S101  # only a call that didn't succeed has none
        return codec.from_json(self.response, RelayRemoveResponse)

    @property
    def intent_key(self) -> IntentKey | None:
        """The key with which to record the outcome, if the worker couldn't record it."""
        return None if self.intent is None else IntentKey(*self.intent)

    def to_error(self) -> PlaidRelayError:
        """Return the error of a call that didn't succeed."""
        assert self.error is not None  # noqa: S101  # only a call that succeeded has none
        return _error_of_payload(self.error)


def _error_payload(error: PlaidRelayError) -> dict[str, Any]:
    """Return an error as a JSON object, with its attributes and the errors of this package that caused it."""
    attributes = {
        name: value
        for name, value in vars(error).items()
        if isinstance(value, str | int | float | None) or name == "causes"
    }
    body: Hidden[bytes] | None = getattr(error, "body", None)
    cause = error.__cause__
    return {
        "class": type(error).__name__,
        "message": str(error.args[0]),
        "attributes": attributes,
        "body": None if body is None else base64.b64encode(body.reveal()[:_MAX_BODY]).decode(),
        "cause": _error_payload(cause) if isinstance(cause, PlaidRelayError) else None,
    }


def _error_of_payload(payload: Mapping[str, Any]) -> PlaidRelayError:
    """Return the error of a JSON object; attributes that this release doesn't know are left out."""
    error_class: type[PlaidRelayError] = getattr(errors, payload["class"], PlaidRelayError)
    attributes = {name: value for name, value in payload["attributes"].items() if hasattr(error_class, name)}
    if "causes" in attributes:
        attributes["causes"] = tuple(attributes["causes"])
    if payload["body"] is not None and hasattr(error_class, "body"):
        attributes["body"] = Hidden(base64.b64decode(payload["body"]))
    error = error_class(payload["message"], **attributes)
    if payload["cause"] is not None:
        error.__cause__ = _error_of_payload(payload["cause"])
    return error
