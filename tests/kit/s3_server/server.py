"""The state that all connections share (store, faults, counts), and the requests to /_admin."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.kit.s3_server.counts import Stats
from tests.kit.s3_server.faults import REFUSALS, Faults, Settings
from tests.kit.s3_server.lies import LIES
from tests.kit.s3_server.operations import S3, route
from tests.kit.s3_server.protocol import ADMIN, Request, Response, S3Error, error_response
from tests.kit.s3_server.store import Bucket


class Server:
    """The state that all connections share."""

    def __init__(self, clock: Callable[[], float], settings: Settings, log_size: int) -> None:
        self.clock = clock
        self.s3 = S3()
        self.log_size = log_size
        self.connections = Counter(open=0, peak=0, total=0)
        self.restart(settings)

    def restart(self, settings: Settings) -> None:
        self.stats = Stats(self.clock(), self.log_size)
        self.faults = Faults(settings, self.clock())

    def connected(self) -> None:
        counts = self.connections
        counts["open"] += 1
        counts["total"] += 1
        counts["peak"] = max(counts["peak"], counts["open"])

    def admit(self, request: Request) -> None:
        """Count a request and plan its faults, once its head has arrived."""
        if request.bucket == ADMIN:
            request.kind = ADMIN
            return
        now = self.clock()
        request.kind, request.operation = route(request)
        request.plan = self.faults.plan(request, now)
        self.stats.arrived(request, now)

    def answer(self, request: Request) -> Response | None:
        """The response; None to reset the connection instead."""
        if request.kind == ADMIN:
            return self.administer(request)
        fault = request.plan.fault
        response: Response | None = None
        if fault in REFUSALS:
            response = error_response(REFUSALS[fault], request)
        elif fault not in ("reset_before", "put_cut"):
            response = self.perform(request)
            if fault == "put_lost":
                response = None
        self.stats.answered(request, response.status if response else 0)
        return response

    def perform(self, request: Request) -> Response:
        try:
            if request.operation is None:
                raise S3Error(501, "NotImplemented", "A header or query you provided asks for what is not implemented.")
            kinds, lie = LIES.get(self.faults.settings.lie, ((), None))
            if lie is not None and request.kind in kinds and self.faults.lies_about(request.subject):
                return lie(self.s3, request, request.operation)
            return request.operation(self.s3, request)
        except S3Error as error:
            return error_response(error, request)
        except (ValueError, LookupError) as error:
            return error_response(S3Error(400, "InvalidArgument", str(error)), request)

    def administer(self, request: Request) -> Response:
        answer: Any = None
        try:
            match request.method, request.key:
                case "GET", "stats":
                    answer = self.report()
                case "GET", "log":
                    answer = list(self.stats.log)
                case "GET", "faults":
                    answer = dataclasses.asdict(self.faults.settings)
                case "PUT", "faults":
                    self.faults = Faults(Settings.of(json.loads(request.body)), self.clock())
                    answer = dataclasses.asdict(self.faults.settings)
                case "POST", "reset":
                    self.restart(self.faults.settings)
                case "PUT", "virtual":
                    self.add_virtual(**json.loads(request.body))
                case _:
                    return Response.of('"no such admin request"', 404, "application/json")
        except (ValueError, TypeError) as error:
            return Response.of(json.dumps(str(error)), 400, "application/json")
        return Response.of(json.dumps(answer), content_type="application/json")

    def add_virtual(self, bucket: str, prefix: str, count: int, size: int) -> None:
        self.s3.buckets.setdefault(bucket, Bucket()).add_virtual(prefix, count, size)

    def report(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **self.stats.report(),
            "open_uploads": sum(len(bucket.uploads) for bucket in self.s3.buckets.values()),
            "connections": dict(self.connections),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_memory": usage.ru_maxrss * 1024,
        }
