"""The server's side of the wire: one thread talks to the clients, another one computes.

The talking thread reads every request, and answers at once whatever need not wait: bad frames, a server that leaves,
more than a client's credits or the memory for the queue allow. Memory is bounded: a client has `credits` requests here,
all together `most_queued_bytes`, answers to a client that does not read are dropped, and so is a connection that sends
more than its credits allow (`inflow.py`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import zmq

from stagger.blocks.serving import wire
from stagger.blocks.serving.inflow import Inflow
from stagger.blocks.serving.keys import KeyPair, is_key
from stagger.blocks.serving.wire import BadFrames, Model, Parts, Refusal, Reply, Request, read_request, size_of
from stagger.errors import StaggerError, counted

#: Requests of one client that a server takes at a time: one that is computed, and the next one beside it.
CREDITS = 2

#: Requests that fail one after another before the server gives up. A text that no server can compute fails one alone.
MOST_FAILURES = 2

#: Longest wait, in milliseconds, before the talking thread looks whether it should stop.
POLL_MS = 50

#: Address, within the process, where libzmq asks whom it may let in (ZAP, ZeroMQ RFC 27).
ZAP = "inproc://zeromq.zap.01"
RESULTS = "inproc://results"


class NotHere(LookupError):
    """Raised by a computation when the request's first block is not loaded."""


class NotFinite(ArithmeticError):
    """Raised by a computation that makes of what it kept finite before what is not."""


@dataclass(frozen=True)
class Computed:
    """What a computation returns: the hidden state behind block `end` - 1, and the states of layers before it.

    `nonfinite`, `sound`: as in `Reply`.
    """

    end: int
    hidden: Parts
    states: Mapping[int, Parts] = field(default_factory=dict)
    nonfinite: int = 0
    sound: bool = True


@dataclass(frozen=True)
class Heartbeat:
    """Seconds between two signs of life on an idle connection, and without one before it counts as lost."""

    every_s: float = 2.0
    lost_after_s: float = 8.0

    def set(self, socket: Any) -> None:
        socket.heartbeat_ivl = round(self.every_s * 1000)
        socket.heartbeat_timeout = round(self.lost_after_s * 1000)
        socket.heartbeat_ttl = round(self.lost_after_s * 1000)
        socket.handshake_ivl = round(self.lost_after_s * 1000)


@dataclass
class _Waiting:
    """A request in the queue. `peer` names its client's connection."""

    peer: bytes
    request: Request
    arrived: float


class SpanServer:
    """Answers requests by `compute`, which runs in one thread of its own, one request at a time.

    model: what requests must fit.
    address: the IP address to listen at; the port is any free one.
    clients: the public key of the clients. None: no encryption, and everybody may send requests.
    span: the blocks that are loaded now, as (start, end).
    claim: the newest claim of the registry that this server knows.
    """

    def __init__(
        self,
        compute: Callable[[Request], Computed],
        model: Model,
        address: str,
        clients: bytes | None,
        *,
        span: Callable[[], tuple[int, int] | None] = lambda: None,
        claim: Callable[[], int] = lambda: 0,
        heartbeat: Heartbeat = Heartbeat(),
        most_queued_bytes: int = 2**30,
    ) -> None:
        self.compute = compute
        self.model = model
        self.counts: Counter[str] = Counter()
        self.tokens = 0
        self.busy_s = 0.0
        self._clients = clients
        self._part = wire.part_of(clients is not None)
        self._span = span
        self._claim = claim
        self._most_queued_bytes = most_queued_bytes
        self._queue: deque[_Waiting] = deque()
        self._filled = threading.Condition()
        self._computing = False
        self._ended = False
        self._in_hand: Counter[bytes] = Counter()
        self._failures = 0  # One after another, and the reason of the last one.
        self._why = ""
        self._context = zmq.Context()
        self._router = self._listening(heartbeat)
        self.inflow = Inflow(
            self._router, CREDITS * (model.most_bytes + 4 * model.most_tokens + wire.MOST_HEADER_BYTES)
        )
        self._results = self._context.socket(zmq.PULL)
        self._results.bind(RESULTS)
        self.address = f"tcp://{address}:{self._router.bind_to_random_port(f'tcp://{address}')}"

    def _listening(self, heartbeat: Heartbeat) -> Any:
        self.public_key = b""
        router = self._context.socket(zmq.ROUTER)
        router.linger = 1000
        router.sndhwm = router.rcvhwm = 2 * CREDITS
        router.maxmsgsize = self.model.most_frame
        heartbeat.set(router)
        self._guard = None
        if self._clients is not None:
            self._guard = self._context.socket(zmq.REP)
            self._guard.bind(ZAP)
            keys = KeyPair.new()
            router.curve_server = True
            router.curve_publickey, router.curve_secretkey = keys.public, keys.secret
            self.public_key = keys.public
        return router

    def counters(self) -> dict[str, float]:
        """For the server's record: requests computed and refused, tokens and seconds of computing, tokens that wait."""
        refused = sum(self.counts[error] for error in wire.ERRORS)
        return {
            "requests": self.counts["computed"],
            "refused": refused,
            "tokens": self.tokens,
            "busy_s": round(self.busy_s, 3),
            "queue_tokens": self.queue_tokens,
        }

    @property
    def queue_tokens(self) -> int:
        return sum(waiting.request.tokens for waiting in list(self._queue))

    # ---- The thread that talks ----

    def serve(self, stop: threading.Event) -> None:
        """Answer until `stop` is set; then refuse what waits, finish what is computed, and close.

        Raises StaggerError when the last requests all failed: another server should take over.
        """
        threading.Thread(target=self._work, name="computing", daemon=True).start()
        poller = zmq.Poller()
        for socket in (self._router, self._results, self._guard):
            if socket is not None:
                poller.register(socket, zmq.POLLIN)
        try:
            while not (stop.is_set() and self._at_rest()):
                ready = dict(poller.poll(POLL_MS))
                self.inflow.check()
                if self._guard in ready:
                    self._let_in()
                if self._results in ready:
                    self._pass_on()
                if stop.is_set():
                    self._refuse_all()
                if self._router in ready:
                    self._take(leaving=stop.is_set())
                if self._failures >= MOST_FAILURES and not self._results.poll(0):
                    raise StaggerError(f"the last {counted(self._failures, 'request')} failed: {self._why}")
        finally:
            self._close()

    def _at_rest(self) -> bool:
        """Whether nothing is computed, no result is to be sent, and no request has come."""
        with self._filled:
            busy = self._computing or bool(self._queue)
        return not busy and not self._results.poll(0) and not self._router.poll(0)

    def _take(self, leaving: bool) -> None:
        """Read one message of a client, and queue or answer it."""
        peer, *parts = self._router.recv_multipart(copy=False)
        self.inflow.message(parts[-1] if parts else peer)
        peer, frames = peer.bytes, [part.buffer for part in parts]
        try:
            request = read_request(frames, self.model)
        except BadFrames as error:
            self._refuse(peer, Refusal(error.id, wire.BAD_REQUEST, str(error)))
            return
        if leaving:
            self._refuse(peer, Refusal(request.id, wire.LEAVING))
        elif self._in_hand[peer] >= CREDITS or self._is_full(request):
            self._refuse(peer, Refusal(request.id, wire.BUSY))
        else:
            self._in_hand[peer] += 1
            with self._filled:
                self._queue.append(_Waiting(peer, request, time.monotonic()))
                self._filled.notify()

    def _is_full(self, request: Request) -> bool:
        queued = sum(size_of(waiting.request.hidden) for waiting in list(self._queue))
        return queued + size_of(request.hidden) > self._most_queued_bytes

    def _refuse_all(self) -> None:
        with self._filled:
            waiting, self._queue = list(self._queue), deque()
        for one in waiting:
            self._release(one.peer)
            self._refuse(one.peer, Refusal(one.request.id, wire.LEAVING))

    def _refuse(self, peer: bytes, refusal: Refusal) -> None:
        self.counts[refusal.error] += 1
        self._router.send_multipart([peer, *refusal.frames()])

    def _pass_on(self) -> None:
        """Send a result. ROUTER drops it when the client is gone, or does not read."""
        frames = self._results.recv_multipart(copy=False)
        self._release(frames[0].bytes)
        self._router.send_multipart(frames, copy=False)

    def _release(self, peer: bytes) -> None:
        self._in_hand[peer] -= 1
        if not self._in_hand[peer]:
            del self._in_hand[peer]

    def _let_in(self) -> None:
        """Answer libzmq, which asks whether a peer that has proved to own a key may connect."""
        assert self._guard is not None
        assert self._clients is not None
        version, number, _, _, _, mechanism, *credentials = self._guard.recv_multipart()
        welcome = mechanism == b"CURVE" and len(credentials) == 1 and is_key(credentials[0], self._clients)
        if not welcome:
            self.counts["strangers"] += 1
        verdict = (b"200", b"OK") if welcome else (b"400", b"unknown key")
        self._guard.send_multipart([version, number, *verdict, b"", b""])

    def _close(self) -> None:
        self.inflow.close()
        with self._filled:
            self._ended = True
            self._filled.notify()
        for socket in (self._router, self._results, self._guard):
            if socket is not None:
                socket.close()

    # ---- The thread that computes ----

    def _work(self) -> None:
        results = self._context.socket(zmq.PUSH)
        results.linger = 0
        results.connect(RESULTS)
        while (waiting := self._next()) is not None:
            answer = self._answer(waiting)
            frames = answer.frames(self._part) if isinstance(answer, Reply) else answer.frames()
            results.send_multipart([waiting.peer, *frames], copy=False)
            with self._filled:
                self._computing = False
                if isinstance(answer, Reply):
                    self._failures = 0
                elif answer.error == wire.FAILED:
                    self._failures += 1
                    self._why = answer.reason
        results.close()
        self._context.term()

    def _next(self) -> _Waiting | None:
        """The next request, once there is one; None at the end."""
        with self._filled:
            self._filled.wait_for(lambda: self._queue or self._ended)
            if self._ended:
                return None
            self._computing = True
            return self._queue.popleft()

    def _answer(self, waiting: _Waiting) -> Reply | Refusal:
        request, began = waiting.request, time.monotonic()
        if began - waiting.arrived > request.deadline_ms / 1000:
            return self._refused(request, wire.BUSY, "its deadline passed while it waited")
        try:
            done = self.compute(request)
        except NotHere:
            return self._refused(request, wire.NOT_HERE)
        except Exception as error:
            return self._refused(request, wire.FAILED, f"{type(error).__name__}: {error}")
        took = time.monotonic() - began
        self.counts["computed"] += 1
        self.tokens += request.tokens
        self.busy_s += took
        return Reply(
            request.id,
            done.end,
            done.hidden,
            done.states,
            took * 1000,
            self.queue_tokens,
            self._claim(),
            done.nonfinite,
            done.sound,
        )

    def _refused(self, request: Request, error: str, reason: str = "") -> Refusal:
        self.counts[error] += 1
        return Refusal(request.id, error, reason, self._span())
