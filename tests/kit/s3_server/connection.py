"""One client's connection: requests in order, bodies at their bandwidth, responses as far as their faults allow."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

from tests.kit.s3_server.faults import Pacer
from tests.kit.s3_server.protocol import ADMIN, Body, ChunkedBody, LengthBody, Request, Response
from tests.kit.s3_server.server import Server
from tests.kit.s3_server.store import Content

SLICE = 256 * 1024
INBOX_LIMIT = 1024 * 1024
HEAD_LIMIT = 64 * 1024


class Connection(asyncio.Protocol):
    """One client: processes requests one after another, in order of arrival."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.inbox = b""
        self.at = 0  # Start of the unread part of the inbox.
        self.request: Request | None = None
        self.body: Body | None = None
        self.content: Content | None = None
        self.position = self.stop = 0
        self.pacer: Pacer | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.busy = False  # A response is unfinished, or the connection is closing.
        self.paused = False  # The client does not read.
        self.advancing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connected()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections["open"] -= 1
        self.busy = True
        self.content = self.body = None
        if self.timer:
            self.timer.cancel()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.content and not self.timer:
            self.pump()
        else:
            self.advance()

    def data_received(self, data: bytes) -> None:
        self.inbox = self.inbox[self.at :] + data if self.at < len(self.inbox) else data
        self.at = 0
        if not (self.busy or self.paused):
            self.advance()
        elif len(self.inbox) > INBOX_LIMIT:
            self.transport.pause_reading()

    def advance(self) -> None:
        """Process the input received so far, until a response has to wait."""
        if self.advancing:
            return
        self.advancing = True
        try:
            while not (self.busy or self.paused) and self.at < len(self.inbox) and self.take_up():
                pass
        except ValueError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.close()
        self.advancing = False
        if not self.busy:
            self.transport.resume_reading()

    def take_up(self) -> bool:
        if self.body:
            before = self.body.size
            self.at = self.body.feed(self.inbox, self.at)
            self.received(self.body, self.body.size - before)
            return True
        end = self.inbox.find(b"\r\n\r\n", self.at)
        if end < 0:
            if len(self.inbox) - self.at > HEAD_LIMIT:
                raise ValueError("the head does not end")
            return False
        head, self.at = self.inbox[self.at : end], end + 4
        self.begin(Request(head))
        return True

    def begin(self, request: Request) -> None:
        self.server.admit(request)
        self.request, headers = request, request.headers
        bandwidth = request.plan.bandwidth
        self.pacer = Pacer(bandwidth, self.server.clock()) if bandwidth else None
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self.body = ChunkedBody()
        elif (length := int(headers.get("content-length") or 0)) > 0:
            self.body = LengthBody(length)
        if self.body is None:
            self.dispatch()
        elif headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def received(self, body: Body, size: int) -> None:
        """Handle `size` new bytes of the body."""
        assert self.request is not None
        if self.request.kind != ADMIN:
            self.server.stats.bytes_in += size
        if self.request.plan.fault == "put_cut" and (body.done or body.size * 2 >= self.request.declared):
            self.dispatch()
            return
        if body.done:
            self.request.body, self.request.trailers, self.body = body.data(), body.trailers, None
        then = self.dispatch if body.done else self.go_on
        wait = 0.0
        if self.pacer:
            self.pacer.done += size
            wait = self.pacer.wait(0, self.server.clock())
        if wait > 0:
            self.wait(wait, then)
        elif body.done:
            self.dispatch()

    def wait(self, seconds: float, then: Callable[[], None]) -> None:
        self.busy = True
        self.timer = asyncio.get_running_loop().call_later(seconds, self.wake, then)

    def wake(self, then: Callable[[], None]) -> None:
        self.timer = None
        then()

    def go_on(self) -> None:
        self.busy = False
        self.advance()

    def dispatch(self) -> None:
        assert self.request is not None
        if self.request.plan.fault == "hold":
            self.hold(self.answer)
        else:
            self.answer()

    def hold(self, then: Callable[[], None]) -> None:
        """Do nothing more for this request until somebody releases it."""
        self.busy = True
        self.server.held.append(then)

    def answer(self) -> None:
        assert self.request is not None
        request = self.request
        response = self.server.answer(request)
        if request.plan.fault == "hold_answer" and response is not None:
            answered = response
            self.hold(lambda: self.send(answered))
        elif response is None:
            self.wait(request.plan.latency, self.reset)
        elif request.plan.latency:
            self.wait(request.plan.latency, lambda: self.send(response))
        else:
            self.send(response)

    def send(self, response: Response) -> None:
        assert self.request is not None
        request, head = self.request, response.head(self.request.number)
        start, stop, content = response.start, response.stop, response.content
        if content is None or request.method == "HEAD":
            stop = start
        if request.plan.fault in ("reset_body", "truncate"):
            if stop == start:  # A head without a body would be a complete response.
                self.end()
                return
            stop = start + (stop - start) // 2
        if self.pacer is None and stop - start <= SLICE:
            body = content.read(start, stop) if content and stop > start else b""
            self.count_out(stop - start)
            self.transport.write(b"".join((head, body)))
            self.end()
            return
        self.transport.write(head)
        self.busy = True
        self.content, self.position, self.stop = content, start, stop
        if self.pacer:
            self.pacer = Pacer(self.pacer.rate, self.server.clock())
        self.pump()

    def pump(self) -> None:
        """Write until the client's buffer is full, the pacer requires a wait, or everything is written."""
        while self.position < self.stop and not (self.paused or self.transport.is_closing()):
            size = min(SLICE, self.stop - self.position)
            if self.pacer:
                now, least = self.server.clock(), min(self.pacer.slice, size)
                size = min(size, self.pacer.due(now))
                if size < least:
                    self.wait(self.pacer.wait(least, now), self.pump)
                    return
                self.pacer.done += size
            assert self.content is not None
            self.transport.write(self.content.read(self.position, self.position + size))
            self.position += size
            self.count_out(size)
        if self.position == self.stop:
            self.content = None
            self.end()

    def count_out(self, size: int) -> None:
        assert self.request is not None
        if self.request.kind != ADMIN:
            self.server.stats.bytes_out += size

    def end(self) -> None:
        """Finish a response, as far as it was to be written."""
        assert self.request is not None
        request, self.request = self.request, None
        if request.plan.fault == "reset_body":
            self.reset()
        elif request.plan.fault == "truncate" or request.headers.get("connection", "").lower() == "close":
            self.close()
        else:
            self.go_on()

    def close(self) -> None:
        self.busy = True
        self.transport.close()

    def reset(self) -> None:
        self.busy = True
        if self.transport.is_closing():
            return
        # A zero linger time makes the kernel send RST, not FIN.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
