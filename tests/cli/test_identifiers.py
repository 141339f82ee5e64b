"""The identifiers that the command accepts from a file or an option."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaid_relay_async.cli.identifiers import Shape, common_shape, is_heading, oddity_of, shape_of

HEXADECIMAL = st.text("0123456789abcdef", min_size=24, max_size=24)
SHAPES = st.lists(st.sampled_from(Shape), min_size=1, max_size=300)


@pytest.mark.parametrize(
    ("identifier", "oddity"),
    [
        ('="5f3a9c2e1b7d4a0011223344"', "begins with ="),
        ("@partner.txt", "begins with @"),
        ("'5f3a9c2e1b7d4a0011223344", "begins with '"),
        ("+491234", "begins with +"),
        ("-1", "begins with -"),
        *((marked, "begins with") for marked in ("#5f3a", "//5f3a", "<td>5f3a</td>", "*5f3a")),
        ("https://lender.example/relay", "is a URL"),
        ("credit-relay-production-5f3a9c2e", "is one of Plaid's tokens"),
        *((number, "is a number") for number in ("5.00E+23", "5,00E+23", "5E+23", "1.5e-7", "12.0", "0,5")),
        *((number, "is a number") for number in ("1.234.567", "1,234,567.00", "1.234")),
        ("a|b", "contains the delimiter |"),
        *((word, "is a heading") for word in ("TOTAL", "Grand Total", "Summe", "null", "#N/A", "#NAME?")),
        *(
            (word, "is a heading")
            for word in ("partnerId", "Partner ID", "secondaryClientId", "Lenders", "client-id")
        ),
        *(
            (word, "is a heading")
            for word in ("secondary_client_id", "Kundennummer", "Companies", "IDs", "name")
        ),
    ],
)
def test_oddities(identifier, oddity):
    """Formulas, numbers, headings, totals and tokens are recognized.

    So are a comment, a tag, a list item, a path and a URL.
    """
    assert oddity_of(identifier).startswith(oddity)


@pytest.mark.parametrize(
    "identifier",
    [
        *("5f3a9c2e1b7d4a0011223344", "123456789012345678901234", "5e23", "12345e678", "p1", "ann", "Ada"),
        *("acme-bank-2", "a=b", "1-2", "1.2.3", "a'b", "x@y.example", "id7", "é", "partner-1", "totality"),
    ],
)
def test_no_oddities(identifier):
    """No other value is odd, because Plaid may change its identifiers."""
    assert oddity_of(identifier) is None


def test_a_long_heading_is_checked_in_linear_time():
    """The pattern matches each text in at most one way, so that a long text takes no exponential time."""
    started = time.process_time()
    assert not is_heading("partnerids" * 20_000 + "!")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("identifier", "shape"),
    [
        ("0123456789", Shape.DIGITS),
        ("0aF", Shape.HEXADECIMAL),
        ("xyz1", Shape.ALPHANUMERIC),
        ("a-b_c.d", Shape.PUNCTUATED),
        *((identifier, Shape.OTHER) for identifier in ("é", "\u0663", "\uff11", "a/b", "a\n", "a b")),
    ],
)
def test_shapes(identifier, shape):
    """The shape is the smallest alphabet that has all characters; only ASCII counts."""
    assert shape_of(identifier) is shape


@given(st.text(), st.text())
def test_shapes_are_nested(one, other):
    """The shape of a text is the largest shape of its parts."""
    assert shape_of(one + other) == max(shape_of(one), shape_of(other))


@given(HEXADECIMAL)
def test_no_hexadecimal_identifier_is_odd(identifier):
    """A hexadecimal identifier is never odd, whatever its digits are."""
    assert oddity_of(identifier) is None
    assert shape_of(identifier) <= Shape.HEXADECIMAL


@given(SHAPES)
def test_the_common_shape(shapes):
    """It is the smallest shape that covers nine in ten identifiers: at most one in ten is outside."""
    common = common_shape(Counter(shapes))
    assert 10 * sum(shape > common for shape in shapes) <= len(shapes)
    smaller = [shape for shape in shapes if shape < common]
    assert 10 * len(smaller) < 9 * len(shapes)


@given(SHAPES, st.integers(1, 50))
def test_more_common_identifiers_make_no_other_odd(shapes, count):
    """Adding identifiers of the common shape doesn't change that shape."""
    common = common_shape(Counter(shapes))
    assert common_shape(Counter(shapes + [common] * count)) == common


@pytest.mark.parametrize(
    ("counts", "common"),
    [
        ({Shape.HEXADECIMAL: 9, Shape.PUNCTUATED: 1}, Shape.HEXADECIMAL),
        ({Shape.HEXADECIMAL: 8, Shape.PUNCTUATED: 1}, Shape.PUNCTUATED),
        ({Shape.DIGITS: 8, Shape.HEXADECIMAL: 92}, Shape.HEXADECIMAL),
        ({Shape.DIGITS: 50, Shape.HEXADECIMAL: 45, Shape.OTHER: 5}, Shape.HEXADECIMAL),
        ({}, Shape.DIGITS),
    ],
)
def test_nine_in_ten(counts, common):
    """With one odd row in ten there is a smaller common shape; with one in nine there is none."""
    assert common_shape(counts) is common


def test_random_hexadecimal_lists_have_no_odd_rows():
    """An identifier that happens to have only digits is inside the shape of the others."""
    choices = random.Random(1)
    for size in [*range(1, 60), 10_000]:
        shapes = [shape_of(f"{choices.getrandbits(96):024x}") for _ in range(size)]
        assert max(shapes) <= common_shape(Counter(shapes))
