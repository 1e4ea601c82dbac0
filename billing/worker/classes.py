"""Cutoff classes as the configuration has them, for those who need them: rules for the ledger, URLs for delivery."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from billing.expirationd.delivery import OfClass
from billing.ledger.classes import Classes, CutoffClass

if TYPE_CHECKING:
    from billing.config.schema import Cutoff


def rules_of_classes(cutoff: Cutoff) -> Classes:
    """What the ledger does differently for each class; a grace to the nanosecond that the configuration writes."""
    return {
        name.encode(): CutoffClass(
            grace_ns=int(Decimal(str(one.grace_s)).scaleb(9)),
            accrue=one.after_exhaustion == "accrue",
            restore=bool(one.restore_url),
        )
        for name, one in cutoff.classes.items()
    }


def calls_of_classes(cutoff: Cutoff) -> tuple[OfClass, ...]:
    """The URL of each class whose URL is not that of [cutoff]."""
    found = [
        OfClass(
            name,
            one.url if one.url != cutoff.url else "",
            one.restore_url if one.restore_url != cutoff.restore_url else "",
        )
        for name, one in cutoff.classes.items()
    ]
    return tuple(one for one in found if one.url or one.restore_url)
