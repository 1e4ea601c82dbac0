"""The results of calls: maps with their fields as attributes, and with money also as exact coins.

    account = await client.get_account("user_01")
    account.balance_nanos       12500000000
    account.balance             Decimal("12.5")
    account["balance_nanos"]    12500000000
    account.cutoff.seq          a map within the map is a result, too
    account.class_              the field class, whose name is a keyword of Python

A `Decimal` never loses a nano: it has as many digits as it needs. Fields of a newer daemon that this version does not
name are in the map all the same. The classes are in `billing.client.results`, which is made from the table of methods.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

_TAKEN = {"holds_total": "holds_nanos"}  # money whose plain name another field has


class Result(dict[str, Any]):
    """A map; see the module."""

    _NESTED: ClassVar[dict[str, type[Result]]] = {}

    if not TYPE_CHECKING:  # a checker knows the fields by their annotations, and no others

        def __getattr__(self, name: str) -> Any:
            if name in self:
                return self._inner(name, self[name])
            if name.endswith("_") and name[:-1] in self:
                return self[name[:-1]]
            for nanos in (_TAKEN.get(name, f"{name}_nanos"), name.replace("_per_hour", "_nanos_per_hour")):
                if nanos in self:
                    value = self[nanos]
                    return None if value is None else coins(value)
            raise AttributeError(f"{type(self).__name__} has no {name}; it has {', '.join(self)}")

    def _inner(self, name: str, value: Any) -> Any:
        kind = self._NESTED.get(name)
        if kind is not None and type(value) is dict:
            return kind(value)
        if kind is not None and type(value) is list:
            return [kind(each) for each in value]
        return value


def coins(nanos: int) -> Decimal:
    """Converts nanos to coins, exactly, whatever the precision of the caller's arithmetic."""
    return Decimal(f"{nanos}e-9")
