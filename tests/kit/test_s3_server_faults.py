"""The S3 server's faults occur as configured, and its counts are correct."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError

import obstore
import pytest

from tests.kit.conftest import Wire
from tests.kit.s3_clients import PART, object_store
from tests.kit.s3_server import S3Server, running
from tests.kit.s3_server.counts import SlidingPeak
from tests.kit.s3_server.faults import Faults, Pacer, Settings, TokenBucket
from tests.kit.s3_server.protocol import Request
from tests.kit.s3_server.store import Virtual

PATHS = [f"/virtual/small/{index:08d}" for index in range(40)]


def test_every_fault_of_reads_is_counted_and_comes_again(wire: Wire, server: S3Server) -> None:
    settings = {"p_503": 0.1, "p_500": 0.1, "p_reset": 0.2, "p_truncate": 0.15}
    server.set_faults(seed=1, **settings)
    seen = [wire.outcome("GET", path) for _ in range(5) for path in PATHS]
    counts, faults = Counter(seen), server.stats()["faults"]
    assert {*counts} == {"200", "503", "500", "reset", "truncated"}
    assert (counts["503"], counts["500"], counts["truncated"]) == (faults["503"], faults["500"], faults["truncate"])
    assert counts["reset"] == faults["reset_before"] + faults["reset_body"]
    assert min(faults.values()) >= 5
    server.reset()
    with ThreadPoolExecutor(8) as pool:  # The order of arrival does not matter.
        again = [result for _ in range(5) for result in pool.map(lambda path: wire.outcome("GET", path), PATHS)]
    assert again == seen
    assert server.stats()["faults"] == faults
    server.set_faults(seed=2, **settings)
    assert [wire.outcome("GET", path) for _ in range(5) for path in PATHS] != seen


def test_a_truncated_body_has_its_full_length_announced(wire: Wire, server: S3Server) -> None:
    server.set_faults(p_truncate=1)
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire.ask("GET", PATHS[0])
    assert caught.value.partial == bytes(Virtual("small/00000000", 1000).read(0, 500))
    assert caught.value.expected == 500
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire.ask("GET", "/virtual/large/00000000")
    assert (len(caught.value.partial), caught.value.expected) == (2**27, 2**27)
    assert wire.outcome("HEAD", PATHS[0]) == "200"


def test_a_broken_upload_has_happened_or_not(wire: Wire, server: S3Server) -> None:
    server.set_faults(p_reset_put=0.6)
    injected: Counter[str] = Counter()
    for size in (0, 10, 100_000):
        for index in range(20):
            key = f"/data/{size}-{index}"
            server.reset()
            seen, faults = wire.outcome("PUT", key, b"x" * size), server.stats()["faults"]
            injected.update(faults)
            assert seen == ("reset" if faults else "200")
            assert wire.outcome("GET", key) == ("404" if "put_cut" in faults else "200")
    assert injected.keys() == {"put_cut", "put_lost"}
    assert 20 < injected.total() < 50
    assert min(injected.values()) >= 10


def test_clients_that_retry_get_through(server: S3Server) -> None:
    data = bytes(range(256)) * (2 * PART // 256 + 1)
    server.set_faults(p_503=0.1, p_500=0.1, p_reset=0.1, p_truncate=0.1, p_reset_put=0.2, seed=3)
    files = object_store(server.endpoint, "data")
    for index in range(10):
        obstore.put(files, f"k{index}", data[: index * 1000])
        assert obstore.get(files, f"k{index}").bytes() == data[: index * 1000]
    assert sum(server.stats()["faults"].values()) >= 5


def test_the_token_bucket_refuses_what_is_beyond_the_burst(wire: Wire, server: S3Server) -> None:
    server.set_faults(rate=1e-6, burst=5)
    assert [wire.outcome("GET", path) for path in PATHS[:8]] == ["200"] * 5 + ["503"] * 3
    assert b"<Code>SlowDown</Code>" in wire.ask("GET", PATHS[0])[1]
    assert server.stats()["faults"] == {"rate": 4}
    server.reset()
    assert wire.outcome("GET", PATHS[0]) == "200"


def test_a_token_bucket_fills_at_its_rate() -> None:
    tokens = TokenBucket(rate=10, burst=3, at=0.0)
    assert [tokens.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [tokens.take(0.1), tokens.take(0.1), tokens.take(0.25), tokens.take(0.25)] == [True, False, True, False]
    assert [tokens.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_faults_only_where_they_are_wanted(wire: Wire, server: S3Server) -> None:
    server.set_faults(p_503=1, only=["PUT", "HeadObject"], prefix="small/")
    asked = [("GET", PATHS[0]), ("HEAD", PATHS[0]), ("PUT", PATHS[0]), ("PUT", "/data/k")]
    assert [wire.outcome(*request) for request in asked] == ["200", "503", "503", "200"]
    server.set_faults(deny="small/0000001")
    assert [wire.outcome("GET", path) for path in (PATHS[9], PATHS[10])] == ["200", "403"]
    assert wire.outcome("GET", "/virtual?list-type=2&prefix=small/0000001") == "403"
    server.set_faults(require_auth=True)
    assert b"<Code>AccessDenied</Code>" in wire.ask("GET", PATHS[0])[1]
    assert wire.ask("GET", PATHS[0], Authorization="AWS4-HMAC-SHA256 ...")[0] == 200
    assert server.stats()["requests"].keys() == {"GetObject", "HeadObject", "PutObject", "ListObjectsV2"}


def test_wrong_settings_are_refused_and_change_nothing(server: S3Server) -> None:
    server.set_faults(latency=0.01)
    for wrong in ({"p_504": 1}, {"p_503": 0.6, "p_reset": 0.6}, {"p_503": "much"}):
        with pytest.raises(HTTPError, match="400"):
            server.set_faults(**wrong)
    assert server.admin("GET", "faults")["latency"] == 0.01


def test_latency_and_bandwidth_take_their_time(wire: Wire, server: S3Server) -> None:
    server.set_faults(latency=0.2)
    start = time.monotonic()
    wire.ask("GET", PATHS[0])
    assert time.monotonic() - start >= 0.2
    server.set_faults(bandwidth=20e6)
    start = time.monotonic()
    wire.ask("GET", "/virtual/large/00000000", Range="bytes=0-7999999")
    assert time.monotonic() - start >= 0.9 * 8 / 20
    start = time.monotonic()
    wire.ask("PUT", "/data/k", bytes(8_000_000))
    assert time.monotonic() - start >= 0.9 * 8 / 20


def test_jitter_is_between_none_and_all_of_it() -> None:
    faults = Faults(Settings(latency=1, jitter=2), now=0.0)
    delays = [faults.plan(request(f"k{index}"), 0.0).latency for index in range(100)]
    assert 1 <= min(delays) < 1.2
    assert 2.8 < max(delays) < 3


def request(key: str) -> Request:
    made = Request(f"GET /data/{key} HTTP/1.1".encode())
    made.kind = "GetObject"
    return made


@pytest.mark.parametrize("rate", [90e6, 1000.0])
def test_pacing_keeps_the_rate_however_late_the_timers_are(rate: float) -> None:
    pacer, now, size = Pacer(rate, now=5.0), 5.0, int(rate * 2)
    while pacer.done < size:
        due = pacer.due(now)
        assert due <= (now - 5.0) * rate - pacer.done
        if due < pacer.slice:
            now += max(0.0, pacer.wait(pacer.slice, now)) + 0.003
        else:
            pacer.done += due
    assert size / (now - 5.0) == pytest.approx(rate, rel=0.03)


def test_a_paced_transfer_makes_up_for_little_that_the_client_lost() -> None:
    pacer = Pacer(1e6, now=0.0)
    assert pacer.due(100.0) == pytest.approx(Pacer.CREDIT_S * 1e6, abs=1)


def test_counts_and_log_tell_what_was_asked(wire: Wire, server: S3Server) -> None:
    wire.ask("PUT", "/data/a", b"12345")
    wire.ask("GET", "/data/a", Range="bytes=1-2")
    wire.ask("GET", "/data/b")
    wire.ask("GET", "/data?list-type=2&prefix=a")
    wire.ask("POST", "/data/c?uploads")
    stats = server.stats()
    kinds = ["PutObject", "GetObject", "GetObject", "ListObjectsV2", "CreateMultipartUpload"]
    assert stats["requests"] == Counter(kinds)
    assert stats["statuses"] == {"200": 3, "206": 1, "404": 1}
    assert stats["bytes_in"] == 5
    assert sum(stats["per_second"]) == 5
    assert 1 <= stats["peak_100ms"] <= stats["peak_1s"] <= 5
    assert stats["open_uploads"] == 1
    spans = ["", "bytes=1-2", "", "", ""]
    assert server.log() == [*zip(kinds, ["a", "a", "b", "a", "c"], spans, [200, 206, 404, 200, 200], strict=True)]
    server.reset()
    assert server.stats()["requests"] == {}
    assert server.log() == []


def test_a_peak_is_of_any_window() -> None:
    peak = SlidingPeak(1.0)
    for now in (0.0, 0.9, 1.5, 1.8, 1.89, 3.0):
        peak.add(now)
    assert peak.peak == 4


def test_the_log_holds_the_last_requests() -> None:
    with running("--log", 3, "--bucket", "data") as server:
        for index in range(5):
            Wire(server).ask("GET", f"/data/{index}")
        assert [key for _, key, _, _ in server.log()] == ["2", "3", "4"]
        assert json.dumps(server.stats()["requests"]) == '{"GetObject": 5}'
