"""Scripted faults: the requests that they apply to, how often, and their effects."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

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


def _check_partner(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{attribute.name}: must be a string or null")


def _check_when(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value not in ("before", "after"):
        raise ValueError(f"{attribute.name}: must be 'before' or 'after'")


def _check_close(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
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
    secondary_client_id: str | None = field(default=None, validator=_check_partner)
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
    close: bool = field(default=False, validator=_check_close)
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


@define
class _Rule:
    """A fault, and the number of requests that it was applied to."""

    fault: Fault
    applied: int = 0

    def try_apply(self, rng: Random) -> bool:
        """Decide whether the fault applies to one more matching request, and count it if so."""
        if self.fault.times is not None and self.applied >= self.fault.times:
            return False
        applies = rng.random() < self.fault.rate
        self.applied += applies
        return applies


class FaultScript:
    """The rules in force, in order: the first one that matches and applies is used.

    Args:
        seed: seed of the random numbers that are compared with a rule's `rate`.
    """

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._rules: list[_Rule] = []

    def add(self, faults: Iterable[Fault]) -> None:
        """Append rules."""
        self._rules.extend(_Rule(fault) for fault in faults)

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    def next_fault(self, path: str, partner: object) -> Fault | None:
        """Return the fault to apply to a request, if any, and count it."""
        for rule in self._rules:
            if rule.fault.matches(path, partner) and rule.try_apply(self._rng):
                return rule.fault
        return None


def parse_faults(script: object) -> list[Fault]:
    """Return the rules of a decoded JSON script, `{"faults": [{"path": ..., "status": 429}, ...]}`.

    Raises:
        ValueError: the script is invalid; the message names the rule, the field and what is allowed.
    """
    match script:
        case {"faults": list() as rules, **more} if not more:
            return [_parse_fault(f"faults[{index}]", rule) for index, rule in enumerate(rules)]
    raise ValueError('the script must be an object such as {"faults": [{"status": 429}]}')


def _parse_fault(location: str, rule: object) -> Fault:
    allowed = [attribute.name for attribute in fields(Fault)]
    if not isinstance(rule, dict):
        raise ValueError(f"{location}: must be an object with some of: {', '.join(allowed)}")  # noqa: TRY004  as above
    unknown = [str(name) for name in rule if name not in allowed]
    if unknown:
        raise ValueError(f"{location}.{unknown[0]}: unknown field; allowed are: {', '.join(allowed)}")
    try:
        return Fault(**rule)
    except ValueError as error:
        raise ValueError(f"{location}.{error}") from None
