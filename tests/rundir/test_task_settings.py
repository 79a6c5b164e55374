"""The settings that a job script passes to its tasks."""

from __future__ import annotations

from stagger.task import TaskSettings


def test_settings_survive_the_job_script() -> None:
    settings = TaskSettings("/run dir", "f00d", 3, "/", ["/a"], {"s3": {"endpoint_url": "http://x"}}, window_s=9)
    assert TaskSettings.from_json(settings.to_json()) == settings
