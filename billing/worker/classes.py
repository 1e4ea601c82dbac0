"""Reads the cutoff classes from the configuration: their rules for the ledger, their URLs for delivery."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from billing.expirationd.delivery import OfClass
from billing.ledger.classes import Classes, CutoffClass

if TYPE_CHECKING:
    from billing.config.schema import Cutoff


def rules_of_classes(cutoff: Cutoff) -> Classes:
    """The rules of each class for the ledger; a grace is exact to the nanosecond, as written in the configuration."""
    return {
        name.encode(): CutoffClass(
            grace_ns=int(Decimal(str(cutoff_class.grace_s)).scaleb(9)),
            accrue=cutoff_class.after_exhaustion == "accrue",
            restore=bool(cutoff_class.restore_url),
        )
        for name, cutoff_class in cutoff.classes.items()
    }


def calls_of_classes(cutoff: Cutoff) -> tuple[OfClass, ...]:
    """The URLs of each class that has another URL than [cutoff]."""
    of_classes = [
        OfClass(
            name,
            cutoff_class.url if cutoff_class.url != cutoff.url else "",
            cutoff_class.restore_url if cutoff_class.restore_url != cutoff.restore_url else None,
        )
        for name, cutoff_class in cutoff.classes.items()
    ]
    return tuple(of_class for of_class in of_classes if of_class.url or of_class.restore_url is not None)
