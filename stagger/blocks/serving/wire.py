"""Version 1 of the wire: the frames of requests and replies, as bytes and values.

    request   [header, lengths int32, hidden state]
    reply     [header, hidden state, states of `layers`...], or [header] with an error

A header is a JSON object of at most 1 KB. Lengths stand for the mask, since rows are padded on the right: 4 bytes a row
instead of 8 bytes a token. Layer k is the output of block k - 1. A hidden state is in one frame, or in
several parts: at most one for each PART bytes that it has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any

import orjson

from stagger.errors import counted, one_line
from stagger.models.dtypes import COMPUTING, NUMBER_TYPES

VERSION = 1
MOST_HEADER_BYTES = 1024

#: Name of a dtype -> bytes of one value.
DTYPES = {name: NUMBER_TYPES[name].bytes for name in COMPUTING}

#: What a server may answer instead of a hidden state, and what a client does about it.
LEAVING = "leaving"  # It computes nothing any more: never send it anything again.
NOT_HERE = "not_here"  # The first block has moved away, or is not loaded yet: send elsewhere.
BUSY = "busy"  # More than its memory or this client's credits allow: send elsewhere, or later.
BAD_REQUEST = "bad_request"  # The request breaks the wire's rules, or does not fit the model.
FAILED = "failed"  # Computing failed, or the server makes what is not finite of everything.
ERRORS = (LEAVING, NOT_HERE, BUSY, BAD_REQUEST, FAILED)

#: Characters of an error's reason that are sent.
MOST_REASON = 400

#: The largest id, number of milliseconds, or size of a dimension in a header.
MOST = 2**53

#: Bytes of a part of a hidden state that is encrypted: while one is sent, the next is encrypted, and the one before is
#: decrypted. That takes 0.6 of the wall time of one frame (16 MB, benchmarks/swarm).
PART = 2**21

#: Bytes of a part in the clear, where fewer frames are cheaper. One frame of 128 MB takes 2.6 times the CPU time: glibc
#: maps memory anew for each block above 32 MB (DEFAULT_MMAP_THRESHOLD_MAX).
PLAIN_PART = 2**24

#: Bytes that a frame holds; pyzmq's Frame.buffer is a memoryview.
Buffer = bytes | bytearray | memoryview

#: A hidden state: its bytes, in one or more pieces.
Parts = Sequence[Buffer]


class BadFrames(ValueError):
    """A message that breaks the rules of the wire. `id` is that of its header, as far as it has a sound one."""

    def __init__(self, reason: str, identifier: int = -1) -> None:
        super().__init__(reason)
        self.id = identifier


@dataclass(frozen=True)
class Request:
    """Pass a hidden state through blocks `start` to `end` - 1.

    `shape` is [rows, length, hidden size]; row r holds `lengths[r]` tokens. `deadline_ms`: the client gives up, and the
    server need not begin, after that many milliseconds. `layers`: the states between the ends that are wanted too, in
    ascending order.
    """

    id: int
    start: int
    end: int
    dtype: str
    shape: tuple[int, int, int]
    deadline_ms: int
    lengths: Buffer
    hidden: Parts
    layers: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the padded rows, which are what computing takes time for."""
        return self.shape[0] * self.shape[1]

    def frames(self, part: int = PART) -> list[Buffer]:
        """`part`: bytes of a frame of the hidden state."""
        header = {
            "v": VERSION,
            "id": self.id,
            "from": self.start,
            "to": self.end,
            "dtype": self.dtype,
            "shape": self.shape,
            "deadline_ms": self.deadline_ms,
            "want": self.layers,
        }
        return [_encoded(header), self.lengths, *_cut([self.hidden], part)]


@dataclass(frozen=True)
class Reply:
    """A hidden state behind block `end` - 1: a span may have shrunk, so `end` may be less than was asked for.

    `states`: layer -> hidden state, of the wanted layers between the ends. `compute_ms`: how long computing took.
    `queue_tokens`: tokens of all clients that still wait there. `claim`: the newest claim that the server knows.
    `nonfinite`: tokens whose states are infinite or not numbers, in rows that were finite before. `sound`: whether the
    server has kept other states finite, and still does.
    """

    id: int
    end: int
    hidden: Parts
    states: Mapping[int, Parts] = field(default_factory=dict)
    compute_ms: float = 0.0
    queue_tokens: int = 0
    claim: int = 0
    nonfinite: int = 0
    sound: bool = True

    def frames(self, part: int = PART) -> list[Buffer]:
        """`part`: bytes of a frame of a hidden state."""
        header = {
            "v": VERSION,
            "id": self.id,
            "to": self.end,
            "layers": list(self.states),
            "compute_ms": round(self.compute_ms, 3),
            "queue_tokens": self.queue_tokens,
            "claim": self.claim,
            "nonfinite": self.nonfinite,
            "sound": self.sound,
        }
        return [_encoded(header), *_cut([self.hidden, *self.states.values()], part)]


@dataclass(frozen=True)
class Refusal:
    """An answer without a hidden state: `error` is one of ERRORS. `serving`: the span that the server has now."""

    id: int
    error: str
    reason: str = ""
    serving: tuple[int, int] | None = None

    def frames(self) -> list[Buffer]:
        reason = one_line(self.reason).encode("ascii", "replace").decode()[:MOST_REASON]
        return [_encoded({"v": VERSION, "id": self.id, "error": self.error, "reason": reason, "serving": self.serving})]


@dataclass(frozen=True)
class Model:
    """What requests must fit: the number of blocks, the size of a hidden state, its dtype, and the largest request."""

    total_blocks: int
    hidden_size: int
    dtype: str
    most_tokens: int

    @property
    def most_bytes(self) -> int:
        """Bytes of the largest hidden state."""
        return self.most_tokens * self.hidden_size * DTYPES[self.dtype]

    @property
    def most_frame(self) -> int:
        """Bytes of the largest frame: a part of a hidden state, the lengths, or a header."""
        return max(min(self.most_bytes, PLAIN_PART), 4 * self.most_tokens) + MOST_HEADER_BYTES


def read_request(frames: Sequence[Buffer], model: Model) -> Request:
    """The request in these frames. Raises BadFrames when they break a rule. What a header claims is believed only
    if the frames that came with it have that size.
    """
    header = _decoded(frames)
    identifier = _number(header, "id")
    try:
        if len(frames) < 3:
            raise ValueError(f"a request has at least 3 frames, not {len(frames)}")
        shape = tuple(_listed(header, "shape"))
        start, end = _number(header, "from"), _number(header, "to")
        layers = tuple(_listed(header, "want"))
        if header.get("dtype") != model.dtype:
            raise ValueError(f"the hidden states of this swarm are {model.dtype}")
        if len(shape) != 3 or 0 in shape or shape[2] != model.hidden_size:
            raise ValueError(f"the shape must be [rows, length, {model.hidden_size}]")
        if shape[0] * shape[1] > model.most_tokens:
            raise ValueError(f"a request has at most {model.most_tokens} tokens, padding included")
        if not start < end <= model.total_blocks:
            raise ValueError(
                f"blocks {start} to {end - 1} are not in this model, which has {counted(model.total_blocks, 'block')}"
            )
        if list(layers) != sorted(set(layers)) or any(not start < layer < end for layer in layers):
            raise ValueError("the wanted layers must ascend between the ends")
        request = Request(
            identifier, start, end, model.dtype, shape, _number(header, "deadline_ms"), frames[1], frames[2:], layers
        )
        _check_sizes(request)
    except ValueError as error:
        raise BadFrames(str(error), identifier) from None
    return request


def read_reply(frames: Sequence[Buffer], hidden_bytes: int) -> Reply | Refusal:
    """The answer in these frames, to a request of `hidden_bytes`. Raises BadFrames when they break a rule."""
    header = _decoded(frames)
    identifier = _number(header, "id")
    try:
        if "error" in header:
            return _read_refusal(header, identifier)
        layers = _listed(header, "layers")
        hidden, *rest = _split(frames[1:], hidden_bytes, 1 + len(layers))
        took = header.get("compute_ms")
        if not isinstance(took, (int, float)) or not 0 <= took < MOST:
            raise ValueError("compute_ms must be a number of milliseconds")
        states = dict(zip(layers, rest, strict=True))
        end, queue, claim, bad = (_number(header, name) for name in ("to", "queue_tokens", "claim", "nonfinite"))
        return Reply(identifier, end, hidden, states, took, queue, claim, bad, header.get("sound") is True)
    except ValueError as error:
        raise BadFrames(str(error), identifier) from None


def id_of(frames: Sequence[Buffer]) -> int:
    """The id in the header of a message. Raises BadFrames."""
    return _number(_decoded(frames), "id")


def _read_refusal(header: dict[str, Any], identifier: int) -> Refusal:
    error, reason, serving = header["error"], header.get("reason", ""), header.get("serving")
    if error not in ERRORS or not isinstance(reason, str):
        raise ValueError("unknown error")
    if serving is not None:
        start, end = _listed(header, "serving")
        serving = (start, end)
    return Refusal(identifier, error, reason, serving)


def _check_sizes(request: Request) -> None:
    rows, length, _ = request.shape
    size = size_of(request.hidden)
    if size != prod(request.shape) * DTYPES[request.dtype]:
        raise ValueError(f"the hidden state has {counted(size, 'byte')}, which is not that of its shape")
    if len(request.hidden) > most_parts(size):
        raise ValueError(f"a hidden state of {counted(size, 'byte')} has too many parts: {len(request.hidden):,}")
    if _size(request.lengths) != 4 * rows:
        raise ValueError(f"the lengths of {counted(rows, 'row')} take 4 bytes each, but have {_size(request.lengths)}")
    if any(not 0 <= tokens <= length for tokens in read_lengths(request.lengths)):
        raise ValueError(f"each row has 0 to {length} tokens")


def read_lengths(data: Buffer) -> list[int]:
    """The numbers of tokens, from int32 in little-endian order."""
    raw = bytes(data)
    return list(struct.unpack(f"<{len(raw) // 4}i", raw))


def write_lengths(lengths: Sequence[int]) -> bytes:
    """The inverse of read_lengths.

    >>> read_lengths(write_lengths([3, 0, 70000]))
    [3, 0, 70000]
    """
    return struct.pack(f"<{len(lengths)}i", *lengths)


def size_of(hidden: Parts) -> int:
    """Bytes of a hidden state."""
    return sum(map(_size, hidden))


def part_of(encrypted: bool) -> int:
    """Bytes of a part that is sent."""
    return PART if encrypted else PLAIN_PART


def most_parts(size: int) -> int:
    """Frames of a hidden state of `size` bytes, at most."""
    return -(-size // PART)


def _cut(states: Iterable[Parts], part: int) -> Iterator[Buffer]:
    """Hidden states in frames of at most `part` bytes. What has arrived in such frames is not cut again."""
    for piece in chain.from_iterable(states):
        whole = memoryview(piece)
        yield from (whole[place : place + part] for place in range(0, len(whole), part))


def _split(frames: Sequence[Buffer], size: int, count: int) -> list[Parts]:
    """The inverse of `_cut`, for `count` states of `size` bytes."""
    states: list[list[Buffer]] = [[]]
    for frame in frames:
        if size_of(states[-1]) == size:
            states.append([])
        states[-1].append(frame)
    if len(states) != count or any(size_of(state) != size or len(state) > most_parts(size) for state in states):
        raise ValueError("the frames do not have the sizes of hidden states")
    return list(states)


def _size(frame: Buffer) -> int:
    return memoryview(frame).nbytes


def _encoded(header: dict[str, Any]) -> bytes:
    data = orjson.dumps(header)
    if len(data) > MOST_HEADER_BYTES:
        raise ValueError(f"the header has {counted(len(data), 'byte')}, and at most {MOST_HEADER_BYTES} are allowed")
    return data


def _decoded(frames: Sequence[Buffer]) -> dict[str, Any]:
    """The header of a message of this version."""
    if not frames or _size(frames[0]) > MOST_HEADER_BYTES:
        raise BadFrames(f"a message begins with a header of at most {MOST_HEADER_BYTES} bytes")
    try:
        header = orjson.loads(bytes(frames[0]))
    except orjson.JSONDecodeError:
        raise BadFrames("the header is not JSON") from None
    if not isinstance(header, dict):
        raise BadFrames("the header is not a JSON object")
    if header.get("v") != VERSION:
        raise BadFrames(f"version {VERSION} of the wire is spoken here", _number(header, "id", -1))
    return header


def _number(header: dict[str, Any], name: str, otherwise: int | None = None) -> int:
    """A whole number of a header. Without `otherwise`, raises BadFrames when it is missing or out of range."""
    value = header.get(name)
    if type(value) is int and 0 <= value < MOST:
        return value
    if otherwise is None:
        raise BadFrames(f"{name} must be a whole number")
    return otherwise


def _listed(header: dict[str, Any], name: str) -> list[int]:
    value = header.get(name)
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < MOST for item in value):
        raise BadFrames(f"{name} must be a list of whole numbers")
    return value
