"""Start times of jobs: measured and planned."""

from __future__ import annotations

import json
import re
from pathlib import Path

from stagger.start.account import start_account
from tests.conftest import Cli, PipelineFiles


def test_starts_are_counted_per_job_and_shown_beside_what_was_planned(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    jobs = [(f"7_{index}", 1, 0, 100.0 + index * 0.3, index % 3) for index in range(30)]
    ranks = [job for job in jobs for _ in range(2)]  # Two of each job.
    began, delays = [rank[3] for rank in ranks], [rank[4] for rank in ranks]
    account = start_account([rank[:3] for rank in ranks], began, delays)
    assert account["jobs"] == 30
    assert account["planned"] == {"peak_1s": 10, "peak_100ms": 10, "span_s": 2.0, "per_second": [10, 10, 10]}
    measured = sorted(began + delay for _, _, _, began, delay in jobs)
    assert account["measured"]["peak_1s"] == max(
        sum(start <= other < start + 1 for other in measured) for start in measured
    )
    assert sum(account["measured"]["per_second"]) == 30
    assert start_account([], [], [])["measured"]["per_second"] == []
    # In a window of 6 s, the slots of two neighbours are 2.3 or 3.7 s apart, whatever the salt.
    cli("launch", pipeline_file(start_policy="spread", randomize_start_duration=6), check=0)
    shown = cli("status", tmp_path / "run", check=0).out
    assert re.search(r"peak starts: \d/s, \d in 100 ms \(planned: 1/s", shown)
    (planned,) = [line.strip() for line in shown.splitlines() if line.strip().startswith("planned")]
    assert planned.count("█") + planned.count("▄") == 2  # On the scale of the measured starts.
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["starts"]["jobs"] == 2
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
