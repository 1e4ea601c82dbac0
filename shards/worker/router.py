"""Any worker answers any request: it serves its own buckets and passes the rest on.

Between each two workers A and B there is one wire per direction: A asks over the wire that A opened, a unix socket, or
where B is on another host a TCP connection (`shards.links.far`). What A's clients
asked for in one turn of the loop goes to B as one frame, and B's answers come back as one frame per sync, already
encoded for the client, so that passing on costs A no second encoding. Requests of one connection for one user travel
the same wire, and B applies a wire's frames in order: the order of a connection is kept.

    request frame   [(number, kind, msgid, mode, bucket id, payload), …]; empty: a probe
    answer frame    [number, answer, number, answer, …]; empty: to a probe
    answer          bytes for the client | (WRONG,)
                    to a SURVEY, MOVE or ASK: any object but bytes | bytes: an Unavailable, encoded

`number` is A's own; `kind` is COMMAND, READ (one bucket) or SURVEY (all buckets of a shard; A merges the answers), and
between hosts MOVE and ASK, by which one supervisor reaches the worker, or the supervisor, of the other.
A request is passed on once, never twice: B does not pass on, it says WRONG, and only to a link.

**Nobody hangs.** A link that is down answers UNAVAILABLE at once: what was never sent, or only asks, was not applied;
a command that was sent and not answered is unknown. All such answers leave with A's next batch, like every other reply.
A shard that has no grant or no room refuses reads, questions to all shards included, at once.
A peer that is connected and silent, as one whose process is frozen, is found out: while something is asked of it and
no frame comes, it is sent an empty one every `PROBE_S`, and any process whose loop turns sends that back. After
`SILENT_PROBES` of these with no frame of any kind it is silent: what it was asked is answered as if it had gone away,
and what comes in from then on is refused at once, surely not applied, until a frame comes. So a reply that only takes
long, as for a slow disk, is waited for. A question to all shards ends after `SURVEY_TIMEOUT_S` in any case, and names
one. The timer is one for each link, and runs only while something is asked.

**No answer is a part of one.** A question to all shards has no answer while one of them has none: a list or a sum that
lacks a shard would be taken for the whole. `("of_shard", shard, question)` puts it to one shard, whatever others do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from shards.links.hello import LinkRefused
from shards.replies import Unavailable, WrongBucket
from shards.shard import COMMAND, READ, Shard
from shards.system.links import Wire
from shards.worker.backpressure import Backpressure

SURVEY = 2
MOVE = 3  # an order about a move, from the supervisor of another host; see `shards.worker.far_moves`
ASK = 4  # an operator's wish, for the supervisor of the peer's host
WRONG = 0
IN_FLIGHT_MAX = 65_536  # requests passed on over one link and not answered; more are refused
RECONNECT_DELAYS_S = (0.01, 0.02, 0.05)  # then the last, until it works
REFUSED_DELAY_S = 0.5  # where the peer does not want this link
PROBE_S = 1.0
SILENT_PROBES = 7  # and a `PROBE_S` before them: sooner than `SURVEY_TIMEOUT_S`, and than clients wait
SURVEY_TIMEOUT_S = 9.0  # of a question to all shards: a client waits for ten seconds unless it says otherwise

# Opens a wire to a peer. Raises OSError, LinkRefused.
Dial = Callable[[Callable[[], Wire]], Awaitable[None]]

log = logging.getLogger("shards.worker.router")

_encode = msgspec.msgpack.Encoder().encode
_to_refusal = msgspec.msgpack.Decoder(tuple[int, str, str]).decode


class Client(Protocol):
    """What the router needs of a client's connection beyond `shards.shard.Caller`."""

    mode: int  # how this client wants its replies encoded; opaque here

    def answer(self, token: Any, reply: object) -> None:
        """Encodes a reply into the buffer of replies that wait for durability."""

    def flush(self) -> None:
        """Sends the replies that waited."""

    def relay(self, data: bytes) -> None:
        """Takes one whole reply that another worker encoded, and that is durable there."""

    def relay_flush(self) -> None:
        """Sends the relayed replies."""

    def refuse(self, token: Any, reply: object) -> None:
        """Sends a reply at once that depends on no stored state, ahead of replies that wait."""


class Survey:
    """Collects the answers of several shards to one question, then hands them on. The token of an answer is the id of
    its shard.
    """

    mode = 0

    def __init__(
        self, shard_ids: Iterable[int], done: Callable[[list[Any] | Unavailable], None], timeout_s: float
    ) -> None:
        self._shard_ids = list(shard_ids)
        self._silent: set[object] = set(self._shard_ids)
        self._done = done
        self._timeout_s = timeout_s
        self._answers: list[Any] = []
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._on_timeout)

    def answer(self, token: object, reply: object) -> None:
        """Takes one shard's answer, or why it cannot be asked."""
        if token not in self._silent:
            return  # it is over, without this one
        self._silent.remove(token)
        self._answers.append(reply)
        if isinstance(reply, Unavailable):
            self._end(reply)
        elif not self._silent:
            self._end(self._answers)

    def flush(self) -> None:
        """Does nothing: an answer counts when it comes."""

    def refuse(self, token: object, reply: object) -> None:
        """Takes why a shard cannot answer."""
        self.answer(token, reply)

    def _on_timeout(self) -> None:
        silent = next(shard_id for shard_id in self._shard_ids if shard_id in self._silent)
        self._end(Unavailable(silent, f"it has not answered for {self._timeout_s:g} s", "no"))

    def _end(self, outcome: list[Any] | Unavailable) -> None:
        self._silent.clear()
        self._timer.cancel()
        self._done(outcome)


def ask_shards(
    shard: Shard,
    links: Mapping[int, PeerLink],
    shard_ids: list[int],
    operation: Any,
    now_ns: int,
    done: Callable[[list[Any] | Unavailable], None],
    timeout_s: float = SURVEY_TIMEOUT_S,
) -> None:
    """Puts a question to this shard, others, or both, by their ids. `done` gets the answers, or why there are none."""
    survey = Survey(shard_ids, done, timeout_s)
    for shard_id in shard_ids:
        if shard_id == shard.shard_id:
            shard.survey(survey, shard_id, operation, now_ns)
        else:
            links[shard_id].ask(survey, shard_id, SURVEY, 0, operation)


class PeerLink:
    """This worker's link to one other worker."""

    def __init__(
        self,
        shard_id: int,
        dial: Dial | None,
        refuse: Callable[[Any, Any, object], None],
        stray: Callable[[tuple[Any, Any, int, Any], int, int], None],
        answered: Callable[[PeerLink, list[int]], None],
        probe_s: float = PROBE_S,
    ) -> None:
        """`dial`: None where nobody serves the shard. `refuse(caller, token, reply)` sends a reply with the next batch.
        `stray((caller, token, kind, payload), bucket id, shard id)` is called where the peer answers that it does not
        serve the bucket. `answered` is called with the buckets of requests that the peer has answered, in order.
        """
        self.shard_id = shard_id
        self._dial = dial
        self.refused = ""  # why the peer would not have this link, the last time
        self.held = ""  # why nobody serves the shard before an operator has it tried again
        self._refuse = refuse
        self._stray = stray
        self._answered = answered
        self._pending: dict[int, tuple[Any, Any, int, int, Any]] = {}
        self._outgoing: list[tuple[int, int, int, int, int, Any]] = []
        self._number = 0
        self.passed_on = 0  # requests, ever
        self._wire: Wire | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._probe_s = probe_s
        self._watch: asyncio.TimerHandle | None = None  # while something is asked and not answered
        self._heard = False  # a frame, since the watch last looked
        self._probes = 0  # since the last frame: what was sent, and looks since there was enough of that
        self.is_silent = False  # the peer's loop does not turn

    @property
    def is_open(self) -> bool:
        """Whether the peer can be asked now."""
        return self._wire is not None and self._wire.is_open

    @property
    def why_down(self) -> str:
        """Why the peer cannot be asked now; "" where it can."""
        return "" if self.is_open else self.refused or "it cannot be reached"

    @property
    def is_awaited(self) -> bool:
        """Whether the peer has not answered all that it was asked."""
        return bool(self._pending)

    def pending_of(self, bucket_id: int) -> int:
        """How many requests for this bucket the peer has not answered."""
        return sum(1 for request in self._pending.values() if request[3] == bucket_id)

    def open(self) -> None:
        """Connects, and again after each loss, until `close`."""
        if self._task is None and not self._closing and self._dial is not None:
            self._task = asyncio.get_running_loop().create_task(self._connect(self._dial))

    async def _connect(self, dial: Dial) -> None:
        attempt = 0
        try:
            while not self._closing:
                try:
                    await dial(lambda: Wire(self._on_frame, self._on_closed, self._on_open))
                    self.refused = ""
                    return
                except OSError:
                    await asyncio.sleep(RECONNECT_DELAYS_S[min(attempt, len(RECONNECT_DELAYS_S) - 1)])
                    attempt += 1
                except LinkRefused as refused:
                    self._note_refusal(refused)
                    await asyncio.sleep(REFUSED_DELAY_S)
        finally:
            self._task = None

    def _note_refusal(self, refused: LinkRefused) -> None:
        if str(refused) != self.refused and not refused.passes:
            log.warning("no link to shard %d: %s", self.shard_id, refused)
        self.refused = str(refused)

    def _on_open(self, wire: Wire) -> None:
        self._wire = wire
        self.held = ""

    def _on_closed(self, wire: Wire) -> None:
        self._wire = None
        self.is_silent = False
        self._give_up("its worker went away")
        self.open()

    def _give_up(self, why: str) -> None:
        """Refuses every request that the peer has not answered: as applied "no" where it was never sent or only reads,
        as "unknown" where the peer may have applied it, or may still do so.
        """
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        staged = {request[0] for request in self._outgoing}
        self._outgoing.clear()
        pending, self._pending = self._pending, {}
        for number, (caller, token, kind, _, _) in pending.items():
            applied = "unknown" if kind == COMMAND and number not in staged else "no"
            self._refuse(caller, token, Unavailable(self.shard_id, why, applied))
        self._answered(self, [request[3] for request in pending.values()])

    def _look(self) -> None:
        """Finds out whether the peer's loop runs. It counts looks and not time: where this process itself stood still,
        a late look counts once. It goes on while the peer is silent, so that the duration of the silence can be told.
        """
        self._watch = None
        if self._wire is None or not (self._pending or self.is_silent):
            return
        if self.is_silent:
            self._probes += 1
        elif self._heard:
            self._heard, self._probes = False, 0
        elif self._probes < SILENT_PROBES:
            self._probes += 1
            self._wire.send([])
        else:
            self.is_silent = True
            self._give_up(self._silence())
        self._watch = asyncio.get_running_loop().call_later(self._probe_s, self._look)

    def _silence(self) -> str:
        return f"its worker has not answered for {self._probe_s * (self._probes + 1):g} s"

    def ask(self, caller: Any, token: Any, kind: int, bucket_id: int, payload: Any) -> None:
        """Passes a request on; `flush` sends it."""
        if self._wire is None:
            why = "its worker is not up" if self._dial is not None else "no host serves it"
            if self.held:
                why = f"it is held, which an operator has to end: {self.held}"
            self._refuse(caller, token, Unavailable(self.shard_id, self.refused or why, "no"))
            return
        if self.is_silent:
            self._refuse(caller, token, Unavailable(self.shard_id, self._silence(), "no"))
            return
        if len(self._pending) >= IN_FLIGHT_MAX:
            self._refuse(caller, token, Unavailable(self.shard_id, "too much is in flight to its worker", "no"))
            return
        number = self._number = (self._number + 1) & 0xFFFFFFFF
        self.passed_on += 1
        self._pending[number] = (caller, token, kind, bucket_id, payload)
        self._outgoing.append((number, kind, token if kind < SURVEY else 0, caller.mode, bucket_id, payload))

    def flush(self) -> None:
        """Sends the requests since the last flush as one frame."""
        if self._outgoing and self._wire is not None:
            self._wire.send(self._outgoing)
            self._outgoing = []
            if self._watch is None:
                self._heard, self._probes = False, 0
                self._watch = asyncio.get_running_loop().call_later(self._probe_s, self._look)

    def _on_frame(self, wire: Wire, frame: Any) -> None:
        self._heard, self.is_silent = True, False
        pop = self._pending.pop
        touched: dict[Any, None] = {}  # in order
        buckets = []
        for index in range(0, len(frame), 2):
            request = pop(frame[index], None)
            if request is None:
                continue
            caller, token, kind, bucket_id, payload = request
            buckets.append(bucket_id)
            answer = frame[index + 1]
            if kind >= SURVEY:
                caller.answer(token, self._refusal_of(answer) if type(answer) is bytes else answer)
            elif type(answer) is bytes:
                caller.relay(answer)
                touched[caller] = None
            else:
                self._stray((caller, token, kind, payload), bucket_id, self.shard_id)
        for caller in touched:
            caller.relay_flush()
        self._answered(self, buckets)

    def _refusal_of(self, data: bytes) -> Unavailable:
        """Why the peer has no answer to a SURVEY, MOVE or ASK."""
        try:
            return Unavailable(*_to_refusal(data))
        except msgspec.MsgspecError:  # encoded for a client, as by a host of an older version
            return Unavailable(self.shard_id, "its worker refuses at this moment", "unknown")

    def close(self) -> None:
        """Closes the link for good."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._wire is not None:
            self._wire.close()

    def drop(self) -> None:
        """Closes the link where it leads to a worker that is no longer the shard's: requests sent over it are not
        waited for.
        """
        wire = self._wire
        self.close()
        if wire is not None:
            wire.abort()


class PeerCaller:
    """The other end of a link: a worker that passes its clients' requests on to this one."""

    def __init__(self, wire: Wire, encode: Callable[[int, int, object], bytes]) -> None:
        """`encode(msgid, mode, reply)` makes a whole reply in the client's encoding."""
        self._wire = wire
        self._encode = encode
        self._staged: list[Any] = []

    def answer(self, token: Any, reply: object) -> None:
        """Stages an answer. `token` is (number, kind, msgid, mode)."""
        number, kind, msgid, mode = token
        staged = self._staged
        staged.append(number)
        if type(reply) is WrongBucket:
            staged.append((WRONG,))
        elif kind >= SURVEY:
            staged.append(_encode(reply) if type(reply) is Unavailable else reply)
        else:
            staged.append(self._encode(msgid, mode, reply))

    def refuse(self, token: Any, reply: object) -> None:
        """Sends one answer at once."""
        number, kind, msgid, mode = token
        if kind < SURVEY:
            reply = self._encode(msgid, mode, reply)
        elif type(reply) is Unavailable:
            reply = _encode(reply)
        self._wire.send([number, reply])

    def tell(self, token: Any, answer: object) -> None:
        """Sends one encoded answer at once."""
        self._wire.send([token[0], answer])

    def echo(self) -> None:
        """Answers an empty frame, which shows that this process's loop runs."""
        self._wire.send([])

    def flush(self) -> None:
        """Sends the staged answers as one frame."""
        if self._staged:
            self._wire.send(self._staged)
            self._staged = []


def receive_frame(
    shard: Shard,
    caller: PeerCaller,
    frame: Any,
    now_ns: int,
    backpressure: Backpressure,
    on_step: Callable[[PeerCaller, Any, Any], bool],
    special: Callable[[PeerCaller, Any, int, Any], None],
) -> None:
    """Hands the requests of a peer's frame to the shard in order, or refuses them for want of room. `on_step(caller,
    token, question)` takes a step of a backup and returns whether the question is one. `special(caller, token, kind,
    payload)` takes MOVE and ASK, which are not for the shard.
    """
    if not frame:
        caller.echo()
        return
    commands: list[tuple[Any, Any, int, Any]] = []  # in a row: these are handed over together
    for number, kind, msgid, mode, bucket_id, payload in frame:
        token = (number, kind, msgid, mode)
        if kind == COMMAND and not backpressure.reason:
            commands.append((caller, token, bucket_id, payload))
            continue
        if commands:
            shard.receive_all(commands, now_ns)
            commands = []
        if kind == COMMAND or (backpressure.refuses_reads and kind == READ):
            backpressure.refuse(caller, token)
        elif kind == READ:
            shard.read(caller, token, bucket_id, payload, now_ns)
        elif kind > SURVEY:
            special(caller, token, kind, payload)
        elif not on_step(caller, token, payload):
            if backpressure.refuses_reads:
                backpressure.refuse(caller, token)
            else:
                shard.survey(caller, token, payload, now_ns)
    if commands:
        shard.receive_all(commands, now_ns)
