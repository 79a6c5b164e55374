"""Tracebacks show the user's own frames; those of stagger, Python and installed packages are folded."""

from __future__ import annotations

from stagger.cli.tracebacks import folded

#: A user who keeps code in folders named stagger/, beside the package's own folder.
TRACE = """Traceback (most recent call last):
  File "/me/env/stagger/task/attempt.py", line 90, in _work
    for _ in chain(steps):
  File "/me/env/stagger/pipeline/chain.py", line 20, in chain
    yield from step
  File "/me/stagger/steps/mine.py", line 3, in keep
    return parse(text)
           ^^^^^^^^^^^
  File "/me/env/lib/python3.11/site-packages/numpy/core.py", line 7, in parse
    raise
  File "/usr/lib/python3.11/json/decoder.py", line 337, in decode
    raise
  File "/me/stagger_steps.py", line 9, in callback
    raise KeyError("x")
KeyError: 'x'
"""


def test_only_frames_below_the_package_of_the_task_are_stagger_s() -> None:
    assert folded(TRACE).splitlines() == [
        "Traceback (most recent call last):",
        "  ... 2 frames of stagger",
        '  File "/me/stagger/steps/mine.py", line 3, in keep',
        "    return parse(text)",
        "           ^^^^^^^^^^^",
        "  ... 2 frames of numpy, Python",
        '  File "/me/stagger_steps.py", line 9, in callback',
        '    raise KeyError("x")',
        "KeyError: 'x'",
    ]


def test_frames_of_a_package_stay_where_there_are_no_others() -> None:
    lines = TRACE.splitlines()
    shown = folded("\n".join([*lines[:5], *lines[8:12], lines[-1]])).splitlines()
    assert [line.strip() for line in shown[1:4]] == [
        "... 2 frames of stagger",
        'File "/me/env/lib/python3.11/site-packages/numpy/core.py", line 7, in parse',
        "raise",
    ]
    assert shown[4:] == ["  ... 1 frame of Python", "KeyError: 'x'"]


def test_bad_input_has_a_sentence_and_no_traceback() -> None:
    lines = TRACE.splitlines()
    inner = "\n".join(
        [*lines[:5], "ValueError: x", "", "The above exception was the direct cause of the following exception:", ""]
    )
    assert folded("\n".join([inner, *lines[:5], "stagger.errors.BadInput: a.jsonl, record 1: not JSON"])) == ""
    assert folded("\n".join([*lines[:5], "ValueError: x"]))
    assert folded("\n".join([*lines[:-1], "stagger.errors.StaggerError: raised by a step"]))
