"""Counts and compares all rows of an input before anything is sent."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from attrs import define, field

from plaid_relay_async.cli.cells import DELIMITERS, Place
from plaid_relay_async.cli.identifiers import Shape, common_shape, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from plaid_relay_async.cli.cells import InputTable

_MAX_LISTED = 20
_SHAPE_DESCRIPTIONS = {
    Shape.DIGITS: "digits only",
    Shape.HEXADECIMAL: "hexadecimal",
    Shape.ALPHANUMERIC: "letters and digits only",
    Shape.PUNCTUATED: "letters, digits, -, _ and . only",
}


@define
class RowPlaces:
    """The number of rows of a kind, and the places of the first of them."""

    count: int = 0
    first: list[Place] = field(factory=list)

    def add(self, place: Place) -> None:
        """Count a row."""
        self.count += 1
        if len(self.first) < _MAX_LISTED:
            self.first.append(place)

    def __str__(self) -> str:
        if not self.count:
            return "0"
        more = ", ..." if self.count > len(self.first) else ""
        name = "line" if self.count == 1 else "lines"
        return f"{self.count:,} ({name} {', '.join(map(str, self.first))}{more})"


@define
class InputSurvey:
    """Counts the rows of an input, and compares the shapes of their identifiers.

    Memory is bounded unless `pairs` is a set.

    Attributes:
        allow_odd: whether identifiers outside the common shape are accepted; see `common_shape`.
        pairs: hashes of the pairs that were counted, to recognize duplicates; `None` to count none.
        rows: the number of rows, including invalid ones.
        first: the first partner.
        last: the last partner.
        partners: hashes of the partners that were counted, if duplicates are recognized.
        duplicates: the rows whose pair is also in an earlier row.
    """

    allow_odd: bool = False
    pairs: set[bytes] | None = None
    rows: int = field(default=0, init=False)
    first: str | None = field(default=None, init=False)
    last: str | None = field(default=None, init=False)
    partners: set[bytes] = field(factory=set, init=False)
    duplicates: RowPlaces = field(factory=RowPlaces, init=False)
    _problems: list[str] = field(factory=list, init=False)
    _invalid: int = field(default=0, init=False)
    _shapes: dict[Shape, RowPlaces] = field(
        factory=lambda: {shape: RowPlaces() for shape in Shape}, init=False
    )

    def add_problem(self, text: str) -> None:
        """Count an invalid row."""
        self.rows += 1
        self._invalid += 1
        if len(self._problems) < _MAX_LISTED:
            self._problems.append(text)

    def add(self, place: Place, partner: str, report_tokens: Sequence[str]) -> None:
        """Count a creation."""
        self.rows += 1
        self.first, self.last = self.first or partner, partner
        self._shapes[shape_of(partner)].add(place)
        if self.pairs is None:
            return
        # Digests of 16 bytes take less memory than tokens and identifiers.
        pair = _digest(partner, *report_tokens)
        if pair in self.pairs:
            self.duplicates.add(place)
        self.pairs.add(pair)
        self.partners.add(_digest(partner))

    def odd_rows(self) -> RowPlaces:
        """Return the rows whose partner is outside the common shape; see `common_shape`."""
        return self._rows_outside(common_shape(self._shape_counts()))

    def problems(self, table: InputTable) -> Iterator[str]:
        """Yield one line for each problem that must be fixed before anything is sent."""
        yield from self._problems
        if self._invalid > len(self._problems):
            yield f"and {self._invalid - len(self._problems):,} more"
        yield from self._header_problems(table)
        odd = self.odd_rows()
        if odd.count and not self.allow_odd:
            shape = _SHAPE_DESCRIPTIONS[common_shape(self._shape_counts())]
            for place in odd.first:
                problem = f"nine in ten rows are {shape}, and this one isn't; --allow-odd-ids accepts it"
                yield f"{table.name}:{place}: {table.columns.key}: {problem}"
            if odd.count > len(odd.first):
                yield f"and {odd.count - len(odd.first):,} more like these"

    def summary(self, table: InputTable) -> list[str]:
        """Return lines that describe the input and how it was read; requires `pairs`."""
        columns = [
            column if column == name else f"{column} ({name})" for column, name in table.recognized.items()
        ]
        if table.headerless_line is not None:
            columns = [f"{table.columns.key} (no header)"]
        elif self._invalid and not columns:
            columns = ["not recognized"]
        facts = {
            "rows": f"{self.rows:,}",
            "invalid": f"{self._invalid:,}",
            "partners": f"{len(self.partners):,}",
            "first": self.first,
            "last": self.last,
            "duplicates": str(self.duplicates),
            "odd rows": str(self.odd_rows()),
            "delimiter": DELIMITERS.get(table.delimiter or ""),
            "columns": ", ".join(columns),
            "unknown columns": ", ".join(table.unknown),
        }
        return [f"{name + ':':16} {fact or 'none'}" for name, fact in facts.items()]

    def _header_problems(self, table: InputTable) -> Iterator[str]:
        """Yield the problem of a first row that may be a header, and exclude that row from the counts."""
        if not table.input_format.may_have_header:
            return
        first_shapes = (
            shape for shape, places in self._shapes.items() if table.headerless_line in places.first
        )
        shape = next(first_shapes, None)
        if shape is None:
            return
        # Compare the first row with the rows below it, and not with itself.
        others = self._shape_counts()
        others[shape] -= 1
        if others.total() and shape > common_shape(others):
            self._shapes[shape].count -= 1
            del self._shapes[shape].first[0]
            problem = (
                "uses other characters than the rows below it: "
                f"use --column {table.columns.key}=NAME if it is a header, or --no-header if it isn't"
            )
            yield f"{table.name}:{table.headerless_line}: {problem}"

    def _shape_counts(self) -> Counter[Shape]:
        return Counter({shape: places.count for shape, places in self._shapes.items()})

    def _rows_outside(self, common: Shape) -> RowPlaces:
        odd = [places for shape, places in self._shapes.items() if shape > common]
        first = sorted((place for places in odd for place in places.first), key=_sort_key)
        return RowPlaces(sum(places.count for places in odd), first[:_MAX_LISTED])


def _sort_key(place: Place) -> list[int]:
    return [int(number) for number in str(place).split(":")]


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=16).digest()
