"""`stagger head`: documents on a terminal, or as JSON."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Annotated, Any

import orjson
import typer

from stagger.cli.answers import print_json
from stagger.cli.message_log import beside_users_code
from stagger.cli.open_run import is_pipeline_file, known_options, open_run
from stagger.cli.options import Json, Options, Stage, storage_options
from stagger.errors import StaggerError, counted
from stagger.storage.storage import absolute, is_local, join
from stagger.terminal import say, say_lines

#: Characters of a text, and of a value of the metadata, that are shown without --full.
TEXT, VALUE = 1000, 200


def head(
    what: Annotated[
        str, typer.Argument(help="A run, its pipeline file, or a file or folder of documents.", metavar="RUN|PATH")
    ],
    number: Annotated[int, typer.Option("-n", min=1, max=10_000, help="How many documents.")] = 3,
    step: Annotated[
        int | None,
        typer.Option(
            "--step", min=1, help="Run the first N steps here, over the first documents. Writers write nothing."
        ),
    ] = None,
    removed: Annotated[
        bool,
        typer.Option("--removed", help="What steps removed: as kept by `removed`, or with --step as it removes now."),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Whole texts and metadata.")] = False,
    text_key: Annotated[
        str | None, typer.Option("--text-key", help="The key or column of the text, if it is not `text`.")
    ] = None,
    stage: Stage = None,
    json: Json = False,
    options: Options = None,
) -> int:
    """Look at documents: of a run's outputs, of a path, of what was removed, or behind a step."""
    with beside_users_code():
        found = documents(what, step, stage, options, removed=removed, text_key=text_key)
        shown = list(itertools.islice(found, number))
    if json:
        print_json([document_of(one) for one in shown])
        return 0
    for place, one in enumerate(shown, 1):
        show(place, one, full=full)
    if not shown:
        say("no documents")
    return 0


def documents(
    what: str, step: int | None, stage: str | None, options: str | None, *, removed: bool, text_key: str | None
) -> Iterator[Any]:
    """The documents to look at. Raises StaggerError when it is unknown what is meant."""
    from stagger.launch import head as looks
    from stagger.storage.storage import Storage

    if step is not None and is_pipeline_file(what):
        from stagger.rundir.run_folder import open_storage
        from stagger.spec.load import load_file

        spec = load_file(what)
        one = spec.only(stage)
        behind = looks.behind_step_of_file(open_storage(spec), spec, one, step)
        yield from behind.removed() if removed else behind.documents()
    elif is_pipeline_file(what) or is_run(what, options):
        folder, record = open_run(what, options)
        name = stage or record.spec.stages[-1].name
        mine = folder.stage(record, record.spec.only(name).name if step is None else record.spec.only(stage).name)
        if step is None:
            yield from looks.of_outputs(mine, removed=removed, text_key=text_key)
            return
        behind = looks.behind_step_of_run(folder, record, mine, step)
        yield from behind.removed() if removed else behind.documents()
    else:
        for given, option in ((step, "--step"), (removed, "--removed"), (stage, "--stage")):
            if given:
                raise StaggerError(
                    f"{option} belongs to a run, and {what} is none: give a run directory or a pipeline file."
                )
        path = absolute(what)
        yield from looks.of_path(Storage(storage_options(options) or known_options(path)), path, text_key)


def is_run(path: str, typed: str | None) -> bool:
    """Whether a path is a run directory."""
    from stagger.storage.storage import Storage

    path = absolute(path)
    if is_local(path):
        return os.path.isfile(join(path, "run.json"))
    storage = Storage(storage_options(typed) or known_options(path))
    return storage.entry(join(path, "run.json")) is not None


def document_of(document: Any) -> dict[str, Any]:
    """A document, or any other record, as JSON can hold it."""
    if not hasattr(document, "text"):
        return {"record": plain(document)}
    found = {"text": document.text, "id": document.id, "metadata": plain(document.metadata)}
    return {**found, **({"media": plain(document.media)} if document.media else {})}


def plain(value: Any) -> Any:
    """A value as JSON holds it; other objects as text."""
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    return orjson.loads(orjson.dumps(value, default=str, option=options))


def show(place: int, document: Any, *, full: bool) -> None:
    """Print a document: its id, its metadata, and its text."""
    one = document_of(document)
    say(f"{place}  {one.get('id', '')}")
    for key, value in one.get("metadata", {}).items():
        say(f"   {key}: {clipped(value if isinstance(value, str) else orjson.dumps(value).decode(), VALUE, full)}")
    text = str(one["text"]) if "text" in one else orjson.dumps(one["record"]).decode()
    say_lines(clipped(text, TEXT, full), indent="   | ")
    say()


def clipped(text: str, most: int, full: bool) -> str:
    """The beginning of a long text, and how long it is."""
    return text if full or len(text) <= most else f"{text[:most]}... ({counted(len(text), 'character')})"
