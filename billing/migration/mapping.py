"""Where Tarantool keeps users, coins and history: a `Mapping`, by default of the space `balance`. Pure.

A mapping file is TOML; each key and table may be left out. Fields are names, or numbers counted from 1, as texts:

    [balance]
    space = "balance"
    user = "username"
    coins = "coins"
    unit = "1"                  # the coins in one unit of the field: "0.01" where it counts hundredths

    [history]
    space = "billing"
    user = "username"
    after = "balance_after"     # the balance after the row, in the same unit

The history is not imported, since an account's entries record what this daemon did. If the file has the table
`history`, balances are compared with it: for each user, the row with the greatest primary key must have the same
balance as the space of balances.
"""

from __future__ import annotations

import tomllib
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple


class Mapping(NamedTuple):
    """See the module. `unit`: in coins; `has_history`: whether balances are compared with a history."""

    space: str = "balance"
    user: str = "username"
    coins: str = "coins"
    unit: Decimal = Decimal(1)
    history_space: str = "billing"
    history_user: str = "username"
    history_after: str = "balance_after"
    has_history: bool = False


_PLACES: Final = {
    "balance": {"space": "space", "user": "user", "coins": "coins", "unit": "unit"},
    "history": {"space": "history_space", "user": "history_user", "after": "history_after"},
}


def mapping_of(text: str, name: str) -> Mapping:
    """Returns the mapping that a file describes. Raises ValueError that names every fault."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not TOML: {error}") from None
    values: dict[str, Any] = {}
    faults = []
    for table, rows in tables.items():
        places = _PLACES.get(table)
        if places is None or not isinstance(rows, dict):
            faults.append(f"{table}: expected the tables {' and '.join(_PLACES)}")
            continue
        for key, value in rows.items():
            if key not in places:
                faults.append(f"{table}.{key}: expected one of {', '.join(places)}")
            elif not isinstance(value, str):
                faults.append(f"{table}.{key}: expected a text")
            else:
                values[places[key]] = value
    if "unit" in values:
        try:
            values["unit"] = Decimal(values["unit"])
        except InvalidOperation:
            values["unit"] = Decimal("NaN")
        if not values["unit"].is_finite() or values["unit"] <= 0:
            faults.append("balance.unit: expected a decimal number of coins above 0")
    if faults:
        raise ValueError(f"{name}: " + "; ".join(faults))
    return Mapping(**values, has_history="history" in tables)
