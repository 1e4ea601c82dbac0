"""Log messages about an endpoint that takes no notices. It is not the endpoint that switches machines off."""

from __future__ import annotations

import logging

log = logging.getLogger("billing.notices")


class OfNotices:
    """The log messages of a delivery of notices."""

    def began(self, origin: str, error: str, waiting: int) -> None:
        log.warning("%s takes no notices (%s) and is probed; users who wait: %d", origin, error, waiting)

    def lasts(self, origin: str, seconds: int, error: str, waiting: int) -> None:
        log.warning(
            "%s has taken no notices for %d s (%s) and is probed; users who wait: %d", origin, seconds, error, waiting
        )

    def ended(self, origin: str, seconds: float, waiting: int) -> None:
        log.info("%s takes notices again after %.1f s: sending, %d owed", origin, seconds, waiting)

    def is_slow(self, origin: str, timeout_s: float, patience_s: float) -> None:
        log.warning(
            "%s answered no notice in time (cutoff.timeout_s is %g): notices may take %g s now",
            origin,
            timeout_s,
            patience_s,
        )
