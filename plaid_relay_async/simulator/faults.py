"""Scripted faults: the requests that they apply to, how often, and their effects."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any, Generic, TypeVar

from attrs import Attribute, define, field, fields, frozen

CONTROL_PREFIX = "/_simulator/"
"""The prefix of the simulator's own paths, to which no fault applies."""

_EFFECTS = ("status", "close", "truncate", "stall")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "connection"})


def _number_between(description: str, minimum: float, maximum: float, *, integer: bool = False) -> Any:
    types = int if integer else (int, float)

    def check(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if value is None and attribute.default is None:
            return
        if isinstance(value, bool) or not isinstance(value, types) or not minimum <= value <= maximum:
            raise ValueError(f"{attribute.name}: must be {description}")

    return check


def check_path(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Raise ValueError unless the value is None or a path outside of the simulator's own ones."""
    if value is None:
        return
    if not isinstance(value, str) or not value.startswith("/") or value.startswith(CONTROL_PREFIX):
        raise ValueError(
            f"{attribute.name}: must be one of Plaid's paths, such as /credit/relay/create, or null"
        )


def _check_text(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{attribute.name}: must be a string or null")


def _check_when(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value not in ("before", "after"):
        raise ValueError(f"{attribute.name}: must be 'before' or 'after'")


def _check_flag(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name}: must be true or false")  # noqa: TRY004  an invalid rule is always a ValueError


def _check_json(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise ValueError(f"{attribute.name}: must be a string or another JSON value") from None


def _check_headers(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if not isinstance(value, Mapping) or not all(map(_is_header, value, value.values())):
        raise ValueError(
            f"{attribute.name}: must be an object of one-line headers, without those that frame the body"
        )


def _is_header(name: object, value: object) -> bool:
    is_name = isinstance(name, str) and _HEADER_NAME.fullmatch(name) and name.lower() not in _FRAMING_HEADERS
    return bool(is_name) and isinstance(value, str) and value.isprintable()


@frozen
class Fault:
    """One rule of a fault script: the requests that it applies to, and its effect.

    A rule has exactly one of `status`, `close`, `truncate` and `stall`, and optionally `latency`; or only
    `latency`.

    Attributes:
        path: apply only to requests to exactly this path; None is any of Plaid's paths.
        secondary_client_id: apply only to requests whose body names this partner.
        when: apply `before` or `after` the request is executed. With `truncate` it is always executed first.
        times: the maximum number of times that the rule applies; None is no limit.
        rate: the fraction, 0 to 1, of the matching requests that the rule applies to.
        status: respond with this HTTP status, 200 to 599.
        body: the body of that response. None is Plaid's error body for the status (below 400, an empty body).
            The fields of an object with `error_type` or `error_code` replace those of Plaid's error body. A
            string is sent as HTML, anything else as JSON.
        headers: additional headers of that response.
        close: close the connection without a response.
        truncate: send the headers and this many bytes of the body, and close the connection.
        stall: send nothing for this many seconds, and close the connection.
        latency: wait this many seconds before or after the execution, as `when` says, and go on.

    Raises:
        ValueError: a field is invalid, or doesn't fit the others; the message starts with its name.
    """

    path: str | None = field(default=None, validator=check_path)
    secondary_client_id: str | None = field(default=None, validator=_check_text)
    when: str = field(default="before", validator=_check_when)
    times: int | None = field(
        default=None,
        validator=_number_between("an integer of at least 0, or null", 0, math.inf, integer=True),
    )
    rate: float = field(default=1.0, validator=_number_between("a number from 0 to 1", 0, 1))
    status: int | None = field(
        default=None, validator=_number_between("an integer from 200 to 599", 200, 599, integer=True)
    )
    body: Any = field(default=None, repr=False, validator=_check_json)  # may hold a token
    headers: Mapping[str, str] = field(factory=dict, repr=False, validator=_check_headers)
    close: bool = field(default=False, validator=_check_flag)
    truncate: int | None = field(
        default=None, validator=_number_between("a number of bytes, 0 or more", 0, math.inf, integer=True)
    )
    stall: float | None = field(default=None, validator=_number_between("seconds from 0 to 1e6", 0, 1e6))
    latency: float | None = field(default=None, validator=_number_between("seconds from 0 to 1e6", 0, 1e6))

    def __attrs_post_init__(self) -> None:
        # Compared by identity: False and None mean that there is no such effect, but 0 bytes is an effect.
        effects = [
            name for name in _EFFECTS if (value := getattr(self, name)) is not None and value is not False
        ]
        if len(effects) > 1:
            raise ValueError(f"{effects[1]}: cannot be combined with {effects[0]}")
        if not effects and self.latency is None:
            raise ValueError(f"status: one of {', '.join(_EFFECTS)} or latency is required")
        if self.status is None and self.body is not None:
            raise ValueError("body: requires status")
        if self.status is None and self.headers:
            raise ValueError("headers: requires status")

    def matches(self, path: str, partner: object) -> bool:
        """Return whether the rule is for requests to this path that name this partner."""
        if self.path is not None and self.path != path:
            return False
        return self.secondary_client_id is None or self.secondary_client_id == partner


@frozen
class WebhookFault:
    """One rule for the delivery of webhooks: the attempts that it applies to, and its effects.

    A rule has at least one of `lose`, `ignore_response`, `duplicates`, `delay` and `stale`.

    Attributes:
        webhook_type: apply only to webhooks of this type.
        webhook_code: apply only to webhooks with this code.
        url: apply only to webhooks to exactly this URL.
        attempt: apply only to the attempt with this number; 1 is the first one.
        times: the maximum number of times that the rule applies; None is no limit.
        rate: the fraction, 0 to 1, of the matching attempts that the rule applies to.
        lose: send nothing. The attempt counts as one without a response.
        ignore_response: send the webhook, and ignore the response. The webhook is then sent again later.
        duplicates: send this many further copies at the same moment, 0 to 10.
        delay: make the attempt this many seconds later, 0 to 86,400. Webhooks that were sent later can then
            arrive earlier.
        stale: sign the attempt with the time at which the webhook was sent first. Otherwise, each attempt is
            signed with its own time.

    Raises:
        ValueError: a field is invalid, or doesn't fit the others; the message starts with its name.
    """

    webhook_type: str | None = field(default=None, validator=_check_text)
    webhook_code: str | None = field(default=None, validator=_check_text)
    url: str | None = field(default=None, validator=_check_text)
    attempt: int | None = field(
        default=None,
        validator=_number_between("an integer of at least 1, or null", 1, math.inf, integer=True),
    )
    times: int | None = field(
        default=None,
        validator=_number_between("an integer of at least 0, or null", 0, math.inf, integer=True),
    )
    rate: float = field(default=1.0, validator=_number_between("a number from 0 to 1", 0, 1))
    lose: bool = field(default=False, validator=_check_flag)
    ignore_response: bool = field(default=False, validator=_check_flag)
    duplicates: int = field(
        default=0, validator=_number_between("an integer from 0 to 10", 0, 10, integer=True)
    )
    delay: float | None = field(
        default=None, validator=_number_between("seconds from 0 to 86,400", 0, 86_400)
    )
    stale: bool = field(default=False, validator=_check_flag)

    def __attrs_post_init__(self) -> None:
        effects = [name for name in ("ignore_response", "duplicates", "stale") if getattr(self, name)]
        if self.lose and effects:
            raise ValueError(f"{effects[0]}: cannot be combined with lose")
        if not effects and not self.lose and self.delay is None:
            raise ValueError("lose: one of lose, ignore_response, duplicates, delay or stale is required")

    def matches(self, webhook_type: str, webhook_code: str, url: str, attempt: int) -> bool:
        """Return whether the rule is for this attempt to deliver a webhook."""
        pairs = (
            (self.webhook_type, webhook_type),
            (self.webhook_code, webhook_code),
            (self.url, url),
            (self.attempt, attempt),
        )
        return all(wanted in (None, actual) for wanted, actual in pairs)


_AnyFault = TypeVar("_AnyFault", Fault, WebhookFault)


@define
class _Rule(Generic[_AnyFault]):
    """A fault, and the number of times that it was applied."""

    fault: _AnyFault
    applied: int = 0

    def try_apply(self, rng: Random) -> bool:
        """Decide whether the fault applies to one more match, and count it if so."""
        if self.fault.times is not None and self.applied >= self.fault.times:
            return False
        applies = rng.random() < self.fault.rate
        self.applied += applies
        return applies


class FaultScript(Generic[_AnyFault]):
    """The rules in force, in order: the first one that matches and applies is used.

    Args:
        seed: seed of the random numbers that are compared with a rule's `rate`.
    """

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._rules: list[_Rule[_AnyFault]] = []

    def add(self, faults: Iterable[_AnyFault]) -> None:
        """Append rules."""
        self._rules.extend(_Rule(fault) for fault in faults)

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    @property
    def unused(self) -> Sequence[_AnyFault]:
        """The faults that have not applied yet, except those with `times=0`, which never do."""
        return [rule.fault for rule in self._rules if not rule.applied and rule.fault.times != 0]

    def next_fault(self, *subject: Any, rng: Random | None = None) -> _AnyFault | None:
        """Return the fault to apply, if any, and count it.

        Args:
            subject: the arguments of the faults' `matches`.
            rng: the random numbers that are compared with a rule's `rate`; None is the script's own.
        """
        for rule in self._rules:
            if rule.fault.matches(*subject) and rule.try_apply(rng or self._rng):
                return rule.fault
        return None


def parse_faults(script: object) -> Sequence[Fault | WebhookFault]:
    """Return the rules of a decoded JSON script.

    It has a list for each kind of rule: `{"faults": [{"status": 429}], "webhook_faults": [{"lose": true}]}`.
    The second one may be missing.

    Raises:
        ValueError: the script is invalid; the message names the rule, the field and what is allowed.
    """
    match script:
        case {"faults": list() as rules, **more} if not more:
            return _parse_rules("faults", rules, Fault)
        case {"faults": list() as rules, "webhook_faults": list() as webhook_rules, **more} if not more:
            return [
                *_parse_rules("faults", rules, Fault),
                *_parse_rules("webhook_faults", webhook_rules, WebhookFault),
            ]
    raise ValueError('the script must be an object such as {"faults": [{"status": 429}]}')


def _parse_rules(name: str, rules: list[object], kind: type[_AnyFault]) -> list[_AnyFault]:
    return [_parse_fault(f"{name}[{index}]", rule, kind) for index, rule in enumerate(rules)]


def _parse_fault(location: str, rule: object, kind: type[_AnyFault]) -> _AnyFault:
    allowed = [attribute.name for attribute in fields(kind)]
    if not isinstance(rule, dict):
        raise ValueError(f"{location}: must be an object with some of: {', '.join(allowed)}")  # noqa: TRY004  as above
    unknown = [str(name) for name in rule if name not in allowed]
    if unknown:
        raise ValueError(f"{location}.{unknown[0]}: unknown field; allowed are: {', '.join(allowed)}")
    try:
        return kind(**rule)
    except ValueError as error:
        raise ValueError(f"{location}.{error}") from None
