"""JSON whose objects have no two members of the same name, of which different parsers use different ones."""

from __future__ import annotations

from typing import Any


class DuplicateMemberError(ValueError):
    """A JSON object has two members of the same name."""

    def __init__(self) -> None:
        super().__init__("a name occurs twice in an object")


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object from its members, as an `object_pairs_hook` of `json.loads`.

    Raises:
        DuplicateMemberError: two members have the same name.
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DuplicateMemberError
    return members
