"""The crew that local launches and jobs share."""

from __future__ import annotations

import resource

from stagger.task.crew import OTHER_FILES, allow_files


def test_a_large_crew_may_open_enough_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        allow_files(3)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, before[1])
        allow_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100 + OTHER_FILES, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
