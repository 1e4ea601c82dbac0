"""How many connections a process has room for: `rpc.connections_max`, or what its file descriptors allow.

The main process raises its soft limit of descriptors to the hard one, which its workers inherit. A worker then takes no
more connections than leave room for all else it opens (segments, snapshots, calls, links, TLS handshakes), so that
running out of descriptors, which would stop the journal, cannot be brought about from outside. Beyond that a connection
is told `TOO_MANY_CONNECTIONS` and closed; beyond `refused_max` of those that still linger, it is closed without a word.
"""

import logging
import resource
from typing import Final

from billing.api.door import LIMITS, Limits
from billing.api.listener import ACCEPTS_AT_ONCE
from billing.api.tls_entrance import HANDSHAKES_MAX
from billing.config.schema import Rpc

log = logging.getLogger("billing.api")

# Descriptors of a worker that are neither connections nor calls. A connection that is turned away takes some turns of
# the loop to go, in each of which as many are accepted.
ASIDE: Final = 64 + 4 * ACCEPTS_AT_ONCE


def raise_limit() -> None:
    """As many descriptors as this process may have, for itself and what it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fit(connections_max: int, descriptors: int, calls_max: int) -> Limits:
    """Limits with which connections, refused ones and `calls_max` calls and handshakes fit 90 % of `descriptors`."""
    room = max(2, descriptors * 9 // 10 - ASIDE - calls_max)
    refused_max = min(LIMITS.refused_max, max(1, room // 10))
    return Limits(connections_max=min(connections_max, room - refused_max), refused_max=refused_max)


def limits_of(rpc: Rpc, concurrency: int) -> Limits:
    """The limits of this process's door, by the configuration and the descriptors it may have; warns where they are
    too few.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    handshakes_max = HANDSHAKES_MAX if rpc.tls_cert else 0
    limits = fit(rpc.connections_max, descriptors, 2 * concurrency + handshakes_max)._replace(
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
