"""The steps that ship with stagger, by the names that pipeline files use."""

from __future__ import annotations

#: Name in a pipeline file -> where the step is. A step's module is imported when a pipeline names it.
BUILTIN = {
    "read_jsonl": "stagger.steps.jsonl:ReadJsonl",
    "read_text": "stagger.steps.text:ReadText",
    "write_jsonl": "stagger.steps.jsonl:WriteJsonl",
}
