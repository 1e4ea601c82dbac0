"""How many connections a process accepts: `rpc.connections_max`, or fewer where its file descriptors do not suffice.

The main process raises its soft limit of descriptors to the hard limit; its workers inherit that. A worker then accepts
only so many connections that enough descriptors remain for everything else it opens (segments, snapshots, calls, links,
TLS handshakes). So clients cannot use up the descriptors, which would stop the journal. A further connection gets the
error `TOO_MANY_CONNECTIONS` and is closed; while `refused_max` such connections linger, a further one is closed without
an error.
"""

import logging
import resource
from typing import Final
from urllib.parse import urlsplit

from billing.api.door import LIMITS, Limits
from billing.api.listener import ACCEPTS_AT_ONCE
from billing.api.tls_entrance import HANDSHAKES_MAX
from billing.config.schema import Cutoff, Rpc

log = logging.getLogger("billing.api")

# Descriptors of a worker that are neither connections nor calls. A connection that is turned away takes some turns of
# the loop to close, and in each turn up to `ACCEPTS_AT_ONCE` further ones are accepted.
ASIDE: Final = 64 + 4 * ACCEPTS_AT_ONCE


def raise_limit() -> None:
    """Raises the soft limit of file descriptors to the hard limit, for this process and those that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fit(connections_max: int, descriptors: int, calls_max: int) -> Limits:
    """Returns limits with which the connections, the refused connections, and `calls_max` calls and handshakes use at
    most 90 % of `descriptors`.
    """
    room = max(2, descriptors * 9 // 10 - ASIDE - calls_max)
    refused_max = min(LIMITS.refused_max, max(1, room // 10))
    return Limits(connections_max=min(connections_max, room - refused_max), refused_max=refused_max)


def limits_of(rpc: Rpc, cutoff: Cutoff) -> Limits:
    """Returns the limits of this process's door, by the configuration and the limit of descriptors; logs a warning
    where there are too few descriptors.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    handshakes_max = HANDSHAKES_MAX if rpc.tls_cert else 0
    limits = fit(rpc.connections_max, descriptors, calls_max(cutoff) + handshakes_max)._replace(
        connections_per_origin_max=rpc.connections_per_origin_max,
        in_flight_total_max=rpc.in_flight_max,
        requests_per_s_max=rpc.requests_per_s_max,
    )
    if limits.connections_max < rpc.connections_max:
        log.warning(
            "only %d connections fit into the %d file descriptors of a worker; rpc.connections_max asks for %d",
            limits.connections_max,
            descriptors,
            rpc.connections_max,
        )
    return limits


def calls_max(cutoff: Cutoff) -> int:
    """How many calls are under way at most: those of a delivery and of the one whose place it has taken. A class has
    endpoints of its own where it has URLs of its own; calls to one server share an endpoint (`expirationd.routes`).
    """
    urls = [(cutoff.url, ""), (cutoff.restore_url, "")]
    for name, of_class in cutoff.classes.items():
        urls += [(of_class.url, name)] if of_class.url != cutoff.url else []
        urls += [(of_class.restore_url, name)] if of_class.restore_url != cutoff.restore_url else []
    endpoints = {(urlsplit(url)[:2], name) for url, name in urls if url}
    return 2 * cutoff.concurrency * max(1, len(endpoints))
