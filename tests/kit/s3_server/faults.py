"""Faults: their settings, the treatment of each request, limits on requests and bandwidth."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.kit.s3_server.protocol import UNDISTURBED, Plan, Request, S3Error

PACED_SLICE = 64 * 1024


@dataclass(frozen=True)
class Settings:
    """Which faults occur, and for which requests. All are off by default."""

    rate: float | None = None  # requests/s of a token bucket; requests beyond it get 503 SlowDown
    burst: float | None = None  # tokens in a full bucket; by default one second's worth
    latency: float = 0.0  # s before the first byte of the response
    jitter: float = 0.0  # s, upper end of a uniform addition to the latency
    bandwidth: float | None = None  # bytes/s per connection, in both directions
    p_503: float = 0.0
    p_500: float = 0.0
    p_reset: float = 0.0  # GET and HEAD: half of them before the response, half within its body
    p_truncate: float = 0.0  # GetObject: correct Content-Length, half of the body, then the connection ends
    p_reset_put: float = 0.0  # PUT, POST, DELETE: half within the request's body, half done but not answered
    seed: int = 0
    only: tuple[str, ...] = ()  # methods or kinds that get the above faults; all if empty
    prefix: str = ""  # prefix of the keys that get the above faults
    deny: str | None = None  # keys with this prefix get 403
    require_auth: bool = False  # unsigned requests get 403
    lie: str = ""  # false answers, by their name in lies.py, to requests for keys with the above prefix
    lies: int | None = None  # number of false answers, after which the true ones follow; all if None

    def __post_init__(self) -> None:
        if self.p_503 + self.p_500 + max(self.p_reset + self.p_truncate, self.p_reset_put) > 1:
            raise ValueError("the probabilities of one request's faults add up to more than 1")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        names = [known.name for known in dataclasses.fields(cls)]
        if unknown := sorted(values.keys() - set(names)):
            raise ValueError(f"unknown {', '.join(unknown)}; there are {', '.join(names)}")
        return cls(**{**values, "only": tuple(values.get("only", ()))})


REFUSALS = {
    "rate": S3Error(503, "SlowDown", "Please reduce your request rate."),
    "503": S3Error(503, "SlowDown", "Please reduce your request rate."),
    "500": S3Error(500, "InternalError", "We encountered an internal error. Please try again."),
    "denied": S3Error(403, "AccessDenied", "Access Denied"),
    "auth": S3Error(403, "AccessDenied", "Access Denied"),
}


@dataclass
class TokenBucket:
    rate: float
    burst: float
    at: float

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def take(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Pacer:
    """The schedule of a transfer at a steady rate. Up to 0.25 s lost by the other side are made up for."""

    CREDIT_S = 0.25

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.start = now
        self.done = 0
        self.slice = max(1, min(PACED_SLICE, int(rate / 50)))

    def due(self, now: float) -> int:
        """Bytes that are due by `now` and have not been transferred."""
        self.start = max(self.start, now - self.CREDIT_S - self.done / self.rate)
        return int((now - self.start) * self.rate) - self.done

    def wait(self, size: int, now: float) -> float:
        """Seconds until `size` more bytes are due."""
        return self.start + (self.done + size) / self.rate - now


class Faults:
    """Decides each request's treatment from the seed, the request, and the number of equal requests before it.

    The arrival order of concurrent requests does not matter, except for the token bucket.
    """

    def __init__(self, settings: Settings, now: float) -> None:
        self.settings = settings
        self.off = settings == Settings(seed=settings.seed)
        self.asked: Counter[str] = Counter()
        self.lied = 0
        self.tokens: TokenBucket | None = None
        if settings.rate is not None:
            self.tokens = TokenBucket(settings.rate, settings.burst or max(1.0, settings.rate), now)

    def plan(self, request: Request, now: float) -> Plan:
        settings = self.settings
        if self.off:
            return UNDISTURBED
        if settings.require_auth and not ("authorization" in request.headers or "X-Amz-Signature" in request.query):
            return Plan("auth")
        if settings.deny is not None and request.subject.startswith(settings.deny):
            return Plan("denied")
        if not request.subject.startswith(settings.prefix) or (
            settings.only and request.method not in settings.only and request.kind not in settings.only
        ):
            return UNDISTURBED
        which, when, how_long = self.draw(request)
        fault = "rate" if self.tokens and not self.tokens.take(now) else self.pick(request, which, when)
        return Plan(fault, settings.latency + settings.jitter * how_long, settings.bandwidth)

    def lies_about(self, subject: str) -> bool:
        """Whether the next request for this key gets a false answer."""
        lies = subject.startswith(self.settings.prefix) and self.lied != self.settings.lies
        self.lied += lies
        return lies

    def draw(self, request: Request) -> tuple[float, float, float]:
        detail = request.header("range") or request.query.get("partNumber", "")
        identity = f"{self.settings.seed} {request.kind} {request.subject} {detail}"
        self.asked[identity] += 1
        digest = hashlib.blake2b(f"{identity} {self.asked[identity]}".encode(), digest_size=24).digest()
        first, second, third = struct.unpack(">QQQ", digest)
        return first / 2**64, second / 2**64, third / 2**64

    def pick(self, request: Request, which: float, when: float) -> str:
        settings, reads = self.settings, request.method in ("GET", "HEAD")
        chances = {
            "503": settings.p_503,
            "500": settings.p_500,
            "reset": settings.p_reset if reads else 0.0,
            "truncate": settings.p_truncate if request.kind == "GetObject" else 0.0,
            "put": settings.p_reset_put if not reads else 0.0,
        }
        for fault, chance in chances.items():
            if which < chance:
                if fault == "reset":
                    return "reset_before" if when < 0.5 or request.method == "HEAD" else "reset_body"
                if fault == "put":
                    return "put_cut" if when < 0.5 else "put_lost"
                return fault
            which -= chance
        return ""
