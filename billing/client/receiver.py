"""The receiver's side of cutoffs, restores and notices: checks that a call is genuine, and whether it is still due.

    receiver = Receiver(secret)                                     # the text of cutoff.secret_file

    call = receiver.call(target, headers, body, now_s=time.time())  # NotGenuine: answer 401
    if receiver.is_due(call):
        ...                                                         # act; where that fails, answer 503
        receiver.done(call)
    ...                                                             # answer 204

A call is **genuine** if it has a signature made with the secret, over the path and the query of a GET or over the body
of a POST, and a time that is at most `tolerance_s` from the receiver's own. `target` is path and query as they stand in
the request line: aiohttp has it as `request.raw_path`; WSGI servers take the path apart, and `wsgi_target` puts it
together again.

**The rule of seq.** Each cutoff of an account has a greater `seq` than the one before, and a restore has the `seq` of
the cutoff that it undoes. A call is due if it comes after all calls that were acted on for that user: it has a greater
`seq`, or it is the restore of the newest cutoff. A daemon whose data were put back without its knowing, as by a
snapshot of its machine, gives numbers again that it had given since; so a call is also due if its money ran out later
than that of the newest one. A call that is not due, because it comes again or late, changes nothing. The receiver
answers it with 2xx all the same: without a 2xx the daemon would repeat it.

**Notices** come at least once. A notice is due if its `event_id` is not among the last `EVENT_IDS_MAX`.

The record of what was acted on must outlive the process: give `Receiver` a mapping that keeps its items in your
database. The daemon has one call in flight for each user, but a call that it gave up waiting for
(`cutoff.timeout_s`) may still be at work when the next one comes. So take the calls of one user in turn, `is_due` to
`done` under one lock. Notices of one user come in order, too.

This module loads nothing of the daemon, and reads no clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, quote, unquote

from billing.signature import TOLERANCE_S, parse_secrets, verify

EVENT_IDS_MAX: Final = 100_000
_NEVER_NS: Final = 1 << 63  # no exhaustion is later
_RESTORE: Final = ":restore"  # behind the event_id of the cutoff that is undone

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
# seq, whether the restore of that cutoff was acted on, too, and its exhausted_at_ns, which earlier versions left out
Place = tuple[int, bool, int] | tuple[int, bool]


class NotGenuine(Exception):
    """The call is not from the daemon, or is too old, or is of another kind: answer 401, and do nothing."""


class Call(NamedTuple):
    """A cutoff, or the restore that undoes it. `exhausted_at_ns`: when the money ran out, for both."""

    user_id: str
    event_id: str  # the same on each attempt
    seq: int
    exhausted_at_ns: int
    is_restore: bool


class Notice(NamedTuple):
    """One event of an account, see `docs/notices.md`. `data`: the facts of the event."""

    event_id: str  # the same on each attempt
    type: str
    timestamp: str
    data: dict[str, Any]


class Receiver:
    """See the module."""

    def __init__(
        self, secret: str, places: MutableMapping[str, Place] | None = None, tolerance_s: int = TOLERANCE_S
    ) -> None:
        """`secret`: the text of the secrets file, with one secret or two. `places`: the newest call of each user that
        was acted on, also as earlier versions kept it (`seq` alone decides then); without a mapping this record ends
        with the process. Raises ValueError for a text without a secret.
        """
        self._secrets = parse_secrets(secret)
        self._tolerance_s = tolerance_s
        self._places: MutableMapping[str, Place] = {} if places is None else places
        self._told: dict[str, None] = {}  # event_id of notices acted on, the oldest first

    def call(self, target: str, headers: Headers, body: bytes = b"", *, now_s: float) -> Call:
        """Returns the cutoff or restore in a request; `body` is that of a POST. Raises NotGenuine."""
        event_id = self._verified(headers, body or target.encode("latin-1", "replace"), now_s)
        fields: dict[str, Any]
        if body:
            fields = _object(body)
        else:
            query = parse_qs(target.partition("?")[2])
            fields = {name: values[0] for name, values in query.items()}
            fields.setdefault("user_id", unquote(event_id.partition(":")[0]))  # where the path has it
        try:
            user_id, named_event_id = fields["user_id"], fields["event_id"]
            seq, exhausted_at_ns = int(fields["seq"]), int(fields["exhausted_at_ns"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise NotGenuine("this is no cutoff") from None
        if named_event_id != event_id or type(user_id) is not str:
            raise NotGenuine("the event is another than the header says")
        return Call(user_id, event_id, seq, exhausted_at_ns, event_id.endswith(_RESTORE))

    def notice(self, headers: Headers, body: bytes, *, now_s: float) -> Notice:
        """Returns the notice in a POST. Raises NotGenuine."""
        event_id = self._verified(headers, body, now_s)
        fields = _object(body)
        kind, timestamp, data = fields.get("type"), fields.get("timestamp"), fields.get("data")
        if type(kind) is not str or type(timestamp) is not str or type(data) is not dict:
            raise NotGenuine("this is no notice")
        return Notice(event_id, kind, timestamp, data)

    def is_due(self, call: Call | Notice) -> bool:
        """Whether the receiver has still to act on the call. A call that is not due is answered with 2xx, too."""
        if isinstance(call, Notice):
            return call.event_id not in self._told
        seq, is_restored, *kept = self._places.get(call.user_id, (0, False, 0))
        exhausted_at_ns = kept[0] if kept else _NEVER_NS
        return (call.seq, call.is_restore) > (seq, is_restored) or call.exhausted_at_ns > exhausted_at_ns

    def done(self, call: Call | Notice) -> None:
        """Records that the call was acted on."""
        if not isinstance(call, Notice):
            if self.is_due(call):
                self._places[call.user_id] = call.seq, call.is_restore, call.exhausted_at_ns
            return
        self._told[call.event_id] = None
        if len(self._told) > EVENT_IDS_MAX:
            del self._told[next(iter(self._told))]

    def _verified(self, headers: Headers, content: bytes, now_s: float) -> str:
        """Returns the webhook-id of a genuine call. Raises NotGenuine."""
        by_name = {name.lower(): value for name, value in dict(headers).items()}
        event_id, timestamp, signature = (
            by_name.get(name, "").encode("latin-1", "replace")
            for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
        )
        if not verify(self._secrets, event_id, timestamp, signature, content, int(now_s), self._tolerance_s):
            raise NotGenuine("the signature is not right, or too old")
        return event_id.decode("latin-1")


def wsgi_target(environ: Mapping[str, Any]) -> str:
    """Returns path and query of a request as they were sent. A server that does not pass on what was sent (`RAW_URI`,
    `REQUEST_URI`) has decoded the path; this function encodes it again as the daemon encodes user ids. The result is
    what was sent if nothing else in `cutoff.url` is encoded and no user id in its path has a slash. So behind such a
    server have the user id in the query, or calls by POST.
    """
    for name in ("RAW_URI", "REQUEST_URI"):
        sent = environ.get(name)
        if sent:
            return str(sent)
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    query = environ.get("QUERY_STRING", "")
    return quote(path.encode("latin-1"), safe="/") + (f"?{query}" if query else "")


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise NotGenuine("the body is no JSON") from None
    if type(fields) is not dict:
        raise NotGenuine("the body is no JSON object")
    return fields
