"""Scripted faults: which requests are struck, how often, and with what."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from attrs import Attribute, define, field, fields, frozen

CONTROL_PREFIX = "/_simulator/"
"""Paths under this are the simulator's own: no fault strikes them."""

_EFFECTS = ("status", "close", "truncate", "stall")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "connection"})


def _number_between(wanted: str, low: float, high: float, *, whole: bool = False) -> Any:
    kinds = int if whole else (int, float)

    def check(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if value is None and attribute.default is None:
            return
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise ValueError(f"{attribute.name}: must be {wanted}")

    return check


def check_path(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    """Raise ValueError unless it is None, or may be one of Plaid's paths."""
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
        raise ValueError(f"{attribute.name}: must be true or false")  # noqa: TRY004  one error for a bad rule


def _check_json(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise ValueError(f"{attribute.name}: must be a string, or something that JSON can hold") from None


def _check_headers(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if not isinstance(value, Mapping) or not all(map(_is_header, value, value.values())):
        raise ValueError(
            f"{attribute.name}: must be an object of one-line headers, none that frames the body"
        )


def _is_header(name: object, value: object) -> bool:
    named = isinstance(name, str) and _HEADER_NAME.fullmatch(name) and name.lower() not in _FRAMING_HEADERS
    return bool(named) and isinstance(value, str) and value.isprintable()


@frozen
class Fault:
    """One rule of the script: the requests it is for, and what befalls them.

    Exactly one of `status`, `close`, `truncate` and `stall` is given, or `latency` alone; `latency` goes with
    each of the others too. A rule of which any part is nonsense raises ValueError, naming the field.

    Attributes:
        path: Only requests to exactly this path; None is any of Plaid's.
        secondary_client_id: Only requests whose body names this partner.
        when: Whether it strikes `before` or `after` the request is acted upon. `truncate` always acts first.
        times: How often it strikes at most; None is without end.
        rate: The fraction, 0 to 1, of the matching requests that are struck.
        status: Answer with this HTTP status, 200 to 599.
        body: The answer's body. None is Plaid's error body for that status (nothing, below 400); an object
            with `error_type` or `error_code` is laid over that; a string is sent as HTML, all else as JSON.
        headers: More headers for that answer.
        close: Close the connection without an answer.
        truncate: Send the true headers, this many bytes of the body, and close the connection.
        stall: Answer nothing for this many seconds, then close the connection.
        latency: Wait this many seconds at the moment that `when` says, then go on.
    """

    path: str | None = field(default=None, validator=check_path)
    secondary_client_id: str | None = field(default=None, validator=_check_partner)
    when: str = field(default="before", validator=_check_when)
    times: int | None = field(
        default=None, validator=_number_between("an integer from 0, or null", 0, math.inf, whole=True)
    )
    rate: float = field(default=1.0, validator=_number_between("a number from 0 to 1", 0, 1))
    status: int | None = field(
        default=None, validator=_number_between("an integer from 200 to 599", 200, 599, whole=True)
    )
    body: Any = field(default=None, repr=False, validator=_check_json)  # may hold a token
    headers: Mapping[str, str] = field(factory=dict, repr=False, validator=_check_headers)
    close: bool = field(default=False, validator=_check_close)
    truncate: int | None = field(
        default=None, validator=_number_between("a count of bytes from 0", 0, math.inf, whole=True)
    )
    stall: float | None = field(default=None, validator=_number_between("seconds from 0 to 1e6", 0, 1e6))
    latency: float | None = field(default=None, validator=_number_between("seconds from 0 to 1e6", 0, 1e6))

    def __attrs_post_init__(self) -> None:
        # By identity: `false` and null count as not given, but 0 is a fine count of bytes.
        given = [
            name for name in _EFFECTS if (value := getattr(self, name)) is not None and value is not False
        ]
        if len(given) > 1:
            raise ValueError(f"{given[1]}: cannot go with {given[0]}")
        if not given and self.latency is None:
            raise ValueError(f"status: one of {', '.join(_EFFECTS)} or latency must be given")
        if self.status is None and self.body is not None:
            raise ValueError("body: goes only with status")
        if self.status is None and self.headers:
            raise ValueError("headers: goes only with status")

    def matches(self, path: str, partner: object) -> bool:
        """Whether a request to this path, naming this partner, may be struck."""
        if self.path is not None and self.path != path:
            return False
        return self.secondary_client_id is None or self.secondary_client_id == partner


@define
class _Rule:
    fault: Fault
    struck: int = 0

    def try_apply(self, rng: Random) -> bool:
        if self.fault.times is not None and self.struck >= self.fault.times:
            return False
        struck = rng.random() < self.fault.rate
        self.struck += struck
        return struck


class FaultScript:
    """The rules in force, in order; the first that matches and strikes wins.

    Args:
        seed: Of the draws that decide which requests a `rate` strikes.
    """

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._rules: list[_Rule] = []

    def add(self, faults: Iterable[Fault]) -> None:
        """Append rules."""
        self._rules.extend(_Rule(fault) for fault in faults)

    def clear(self) -> None:
        """Drop all rules."""
        self._rules.clear()

    def next_fault(self, path: str, partner: object) -> Fault | None:
        """The fault that befalls this request, if one does; it is counted."""
        for rule in self._rules:
            if rule.fault.matches(path, partner) and rule.try_apply(self._rng):
                return rule.fault
        return None


def parse_faults(script: object) -> list[Fault]:
    """The rules in a script as JSON, `{"faults": [{"path": ..., "status": 429}, ...]}`.

    Raises:
        ValueError: The script is no such thing; it says which rule, which field and what is allowed.
    """
    match script:
        case {"faults": list() as rules, **more} if not more:
            return [_parse_fault(f"faults[{place}]", rule) for place, rule in enumerate(rules)]
    raise ValueError('the script must be an object such as {"faults": [{"status": 429}]}')


def _parse_fault(where: str, rule: object) -> Fault:
    allowed = [attribute.name for attribute in fields(Fault)]
    if not isinstance(rule, dict):
        raise ValueError(f"{where}: must be an object with some of: {', '.join(allowed)}")  # noqa: TRY004  as above
    unknown = [str(name) for name in rule if name not in allowed]
    if unknown:
        raise ValueError(f"{where}.{unknown[0]}: unknown field; allowed are: {', '.join(allowed)}")
    try:
        return Fault(**rule)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
