"""Files by values of the metadata on S3: they wait on this machine's disk, not in memory, and are whole at the end."""

from __future__ import annotations

from stagger import Document, ReadJsonl, WriteJsonl
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage
from tests.kit.commits import commit


def test_many_values_hold_no_memory_before_the_end(storage: Storage) -> None:
    task = TaskContext(storage, 0, 1, [], "tag")
    folder = f"s3://out/split-{storage.options['s3']['engine']}"
    step = WriteJsonl(folder, "{language}/{rank}.jsonl", compression=None, max_open_files=2)
    step.bind(task)
    documents = [Document("x" * 5000, str(n), [], {"language": f"~{n % 7}"}) for n in range(700)]
    assert list(step(iter(documents), 0, 1)) == documents
    assert sum(one.output.held for one in task.outputs) == 0
    assert sum(one.output.size for one in task.outputs) > 3 * 10**6
    commit(task)
    task.close()
    reader = ReadJsonl(folder, recursive=True)
    shards = reader.find_shards(storage)
    assert [shard.name for shard in shards] == [f"~7E{n}/00000.jsonl" for n in range(7)]
    reader.bind(TaskContext(storage, 0, 1, shards, "tag"))
    found = [document.id for document in reader(None, 0, 1)]
    assert found == [one.id for n in range(7) for one in documents[n::7]]
