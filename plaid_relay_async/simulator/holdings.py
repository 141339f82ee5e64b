"""Holdings, securities and transactions of an investment account.

The fields are those of two versions of Plaid's OpenAPI document, 1.697.4 and 1.778.0, so that clients written
for either version can be tested.
"""

from collections.abc import Iterator
from datetime import timedelta
from random import Random

from attrs import frozen

from plaid_relay_async.simulator.outline import Account, Json, Outline, format_timestamp, random_identifier


@frozen
class _Security:
    name: str | None
    ticker: str | None
    security_type: str | None


_SECURITIES = (
    _Security("Maple Index Fund", "MAPL", "mutual fund"),
    _Security("Otter Works Inc.", "OTTR", "equity"),
    _Security(None, None, None),  # a security without a name at the bank
)
_COINS = (_Security("Bitcoin", "BTC", "cryptocurrency"),)
_TRADES = (("buy", "buy"), ("sell", "sell"), ("cash", "dividend"), ("fee", "management fee"))


@frozen
class _Lot:
    """A holding of one security, at the bank's price for one unit."""

    security: _Security
    security_id: str
    price: float


def generate_investments(account: Account, outline: Outline) -> Json:
    """Return the `investments` of an account: holdings, their securities, and transactions."""
    rng = Random(f"{account.seed}:investments")
    securities = _COINS if account.kind.currency[1] else _SECURITIES
    lots = [_Lot(security, random_identifier(rng), round(rng.uniform(5, 90), 3)) for security in securities]
    trades = [trade for lot in lots for trade in _trades(rng, account, outline, lot)]
    since = outline.iso_date(outline.days_shown)
    return {
        "holdings": [_holding(rng, account, outline, lot) for lot in lots],
        "securities": [_security(lot) for lot in lots],
        "transactions": sorted(
            (trade for trade in trades if trade["date"] > since),
            key=lambda trade: str(trade["date"]),
            reverse=True,
        ),
    }


def _security(lot: _Lot) -> Json:
    return {
        "name": lot.security.name,
        "security_id": lot.security_id,
        "ticker_symbol": lot.security.ticker,
        "type": lot.security.security_type,
    }


def _holding(rng: Random, account: Account, outline: Outline, lot: _Lot) -> Json:
    quantity = round(rng.uniform(1, 900), 4)
    has_vesting = rng.random() < 0.5
    cost = round(quantity * lot.price * rng.uniform(0.5, 1.2), 2)
    is_named = lot.security.name is not None
    return {
        "account_id": account.account_id,
        "cost_basis": cost if is_named else None,  # in 1.697.4 and not in 1.778.0
        "institution_price": lot.price,
        "institution_price_as_of": outline.iso_date(1) if is_named else None,
        "institution_value": round(quantity * lot.price, 4),
        "quantity": quantity,
        "security_id": lot.security_id,
        "ticker_symbol": lot.security.ticker,
        # The next three are in 1.778.0 and not in 1.697.4.
        "tax_lots": [_tax_lot(rng, outline, quantity, lot.price, cost)] if is_named else [],
        "vested_quantity": round(quantity / 2, 4) if has_vesting else None,
        "vested_value": round(quantity / 2 * lot.price, 4) if has_vesting else None,
        **account.kind.currency_fields(),
    }


def _tax_lot(rng: Random, outline: Outline, quantity: float, price: float, cost: float) -> Json:
    return {
        "cost_basis": cost,
        "current_value": round(quantity * price, 4),
        "institution_lot_id": random_identifier(rng)[:12],
        "original_purchase_datetime": format_timestamp(
            outline.generated_at - timedelta(days=rng.randrange(1, 4000))
        ),
        "position_type": "LONG",
        "purchase_price": round(cost / quantity, 4),
        "quantity": quantity,
    }


def _trades(rng: Random, account: Account, outline: Outline, lot: _Lot) -> Iterator[Json]:
    for kind, subtype in _TRADES if outline.days else ():
        quantity = round(rng.uniform(1, 20), 4) if kind in {"buy", "sell"} else 0.0
        amount = round(quantity * lot.price, 2) or round(rng.uniform(1, 30), 2)
        yield {
            "account_id": account.account_id,
            "amount": -amount if kind in {"sell", "cash"} else amount,
            "date": outline.iso_date(rng.randrange(outline.days)),
            "fees": round(rng.uniform(0, 5), 2) if kind == "sell" else None,
            "investment_transaction_id": random_identifier(rng),
            "name": f"{subtype.upper()} {lot.security.name or 'UNNAMED SECURITY'}",
            "price": lot.price if quantity else 0.0,
            "quantity": -quantity if kind == "sell" else quantity,
            "security_id": None if kind == "fee" else lot.security_id,
            "subtype": subtype,
            "type": kind,
            # The next two are required in 1.697.4 and not in 1.778.0.
            "vested_quantity": 0.0,
            "vested_value": 0.0,
            **account.kind.currency_fields(),
        }
