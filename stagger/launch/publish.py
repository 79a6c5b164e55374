"""Publishes the outputs of a stage as a data set of the Hugging Face Hub: in one commit, once all ranks are done."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from stagger.backoff import full_jitter
from stagger.errors import StaggerError, counted, missing_extra
from stagger.progress import busy
from stagger.rundir.output_names import Places
from stagger.rundir.published import Published, read_published, write_published
from stagger.rundir.records import Completion, OutputRecord
from stagger.rundir.run_folder import Stage
from stagger.spec.models import PublishSpec, RunSpec
from stagger.status.look import Look
from stagger.storage.storage import Storage, is_local, without_secrets
from stagger.terminal import logger

#: Tries of a request that failed for a reason that may pass, and answers of the Hub with such reasons.
TRIES, MAY_PASS = 8, (408, 409, 412, 425, 429, 500, 502, 503, 504)

#: Bytes of a remote output up to which it is uploaded from memory, not by way of this machine's disk.
SMALL_BYTES = 2**20

Answer = TypeVar("Answer")


class NotPublished(StaggerError):
    """The outputs of a stage, which is done, could not be published."""

    exit_status = 1


# ---- At launch ----


def check_publishing(spec: RunSpec, outputs: Mapping[str, Sequence[str]]) -> None:
    """Raise StaggerError when stages could not publish their `outputs`, their folders: no writer, package or token.

    Asks the Hub who the token belongs to. If it cannot be reached from here, the launch says so, and goes on.
    """
    targets: dict[tuple[str, str], str] = {}
    for stage in spec.stages:
        if stage.publish is None:
            continue
        if not outputs.get(stage.name):
            raise StaggerError(f"{stage.name}: publish: no step of the stage writes files; add a writer, or remove it.")
        place = (stage.publish.repo, stage.publish.path)
        if (other := targets.setdefault(place, stage.name)) != stage.name:
            raise StaggerError(
                f"{other} and {stage.name} would publish to the same folder of {stage.publish.repo}: give each a path."
            )
    if targets:
        _check_token({repo.partition("/")[0] for repo, _ in targets})


def _check_token(owners: set[str]) -> None:
    """Raise StaggerError when the token cannot write to data sets of the `owners`."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise missing_extra("hub", "huggingface_hub", ModuleNotFoundError("No module named 'huggingface_hub'"))
    token = token_of_user()
    from huggingface_hub import HfApi

    try:
        user = HfApi().whoami(token=token)
    except Exception as error:  # Of requests, or of the Hub's client.
        if status_of(error) in (401, 403):
            raise StaggerError("publish: the Hub does not accept this token; set HF_TOKEN to a valid one.") from error
        logger.warning(f"publish: the Hub cannot be asked from here ({reason_of(error)}); the token is not checked")
        return
    names = {user.get("name"), *(one.get("name") for one in user.get("orgs", ()))}
    for owner in sorted(owners - names):
        raise StaggerError(
            f"publish: the token belongs to {user.get('name')}, who is not a member of {owner}: correct repo, or set"
            " HF_TOKEN to a token of a member."
        )
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise StaggerError("publish: the token may only read; set HF_TOKEN to one that may write.")


def token_of_user() -> str:
    """The token in HF_TOKEN, or that of `hf auth login`. Raises StaggerError when there is none."""
    from huggingface_hub import get_token

    token: str | None = get_token()
    if not token:
        raise StaggerError("publish: there is no token for the Hub; export HF_TOKEN, or log in with: hf auth login")
    return token


# ---- When a stage is done ----


def publish(look: Look) -> list[str]:
    """Publish the outputs of a stage that is done, if it is to be, and record that. Returns what it did, in sentences.

    Changes nothing if the same outputs have been published before. Raises NotPublished, which is recorded, too.
    """
    stage, spec = look.stage, look.stage.spec.publish
    if spec is None or not look.is_done:
        return []
    before = read_published(stage.folder)
    try:
        record = _published(stage, look.completions, spec, before)
    except Exception as error:  # Of requests, of the Hub's client, or of the storage.
        why = reason_of(error)
        known = before or Published(spec.repo, spec.path, spec.revision)
        write_published(stage.folder, replace(known, time=time.time(), error=why))
        raise NotPublished(
            f"{stage.name}: its ranks are done, but the outputs are not published to {spec.repo}: {why}. Try again"
            f" with: stagger retry {stage.run.path}"
        ) from error
    if record is before:
        return []
    write_published(stage.folder, record)
    logger.success(f"{stage.name}: published {record}")
    return [f"published {record}"]


def _published(
    stage: Stage, completions: Sequence[Completion], spec: PublishSpec, before: Published | None
) -> Published:
    """Commit the outputs. Returns the new record, or `before` if it is about the same."""
    written = (output for completion in completions for output in completion["outputs"])
    outputs = {output["path"]: output for output in written if "removed_by" not in output}
    names = names_in_repo(outputs, stage.record.outputs[stage.name], spec.path)
    content = digest_of(names, outputs)
    where = (spec.repo, spec.path, spec.revision)
    if (
        before is not None
        and not before.error
        and (before.repo, before.path, before.revision, before.content)
        == (
            *where,
            content,
        )
    ):
        return before
    same_place = before is not None and (before.repo, before.path, before.revision) == where
    gone = sorted(set(before.files) - set(names.values())) if before is not None and same_place else []
    upload = Upload(stage.folder.storage, spec, f"stagger: {stage.record.spec.name}, {stage.name}")
    with busy(f"{stage.name}: publishing {counted(len(names), 'file')} to {spec.repo}"):
        commit = upload.commit(outputs, names, gone)
    return Published(
        *where, tuple(sorted(names.values())), content, str(commit.oid), str(upload.url), time.time(), error=""
    )


def names_in_repo(outputs: Mapping[str, OutputRecord], folders: Sequence[str], path: str) -> dict[str, str]:
    """Output -> its path in the repository: that below its folder and, of several folders, below the folder's name."""
    places = Places()
    names = {}
    for output in outputs:
        for folder in dict.fromkeys(folders):
            if (below := places.below(folder, output)) is not None:
                own = [folder.rstrip("/").rpartition("/")[2]] if len(set(folders)) > 1 else []
                names[output] = "/".join([*([path.strip("/")] if path.strip("/") else []), *own, below])
                break
    if len(set(names.values())) < len(names):
        raise StaggerError("two outputs have the same path in the repository; give their folders different names")
    return names


def digest_of(names: Mapping[str, str], outputs: Mapping[str, OutputRecord]) -> str:
    found = sorted(f"{name}\0{outputs[path]['bytes']}\0{outputs[path]['digest']}" for path, name in names.items())
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


@dataclass(frozen=True)
class Upload:
    """The upload of the outputs of a stage to a repository of the Hub, in one commit."""

    storage: Storage
    spec: PublishSpec
    message: str

    @property
    def url(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/datasets/{self.spec.repo}"

    def commit(self, outputs: Mapping[str, OutputRecord], names: Mapping[str, str], gone: Sequence[str]) -> Any:
        """Upload the files, remove those that are `gone`, and commit both. What is there already is not sent again."""
        from huggingface_hub import CommitOperationDelete, HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        api, spec = HfApi(token=token_of_user()), self.spec
        where: dict[str, Any] = {"repo_id": spec.repo, "repo_type": "dataset"}
        retried(lambda: api.create_repo(**where, private=spec.private, exist_ok=True))
        if spec.revision != "main":
            retried(lambda: api.create_branch(**where, branch=spec.revision, exist_ok=True))
        self._check_sizes(outputs)
        with contextlib.ExitStack() as files:
            additions = []
            for path, name in names.items():
                addition = self._addition(path, name, outputs[path], files)
                additions.append(addition)
                if not is_local(path):  # Sent one after another: neither memory nor disk would hold all.
                    send = partial(api.preupload_lfs_files, additions=[addition], revision=spec.revision, **where)
                    retried(send)
            existing = set(retried(lambda: api.list_repo_files(**where, revision=spec.revision))) if gone else set()
            removals = [CommitOperationDelete(path_in_repo=name) for name in gone if name in existing]
            changes: list[Any] = [*additions, *removals]
            more: dict[str, Any] = {**where, "revision": spec.revision}
            return retried(lambda: api.create_commit(operations=changes, commit_message=self.message, **more))

    def _check_sizes(self, outputs: Mapping[str, OutputRecord]) -> None:
        """Raise StaggerError for an output that is missing, or is not what the records say."""
        entries = self.storage.entries(list(outputs))
        for output, entry in zip(outputs.values(), entries, strict=True):
            if entry is None or entry.size != output["bytes"]:
                raise StaggerError(
                    f"{output['path']} {'is gone' if entry is None else 'has changed'} since its rank was done"
                )

    def _addition(self, path: str, name: str, output: OutputRecord, files: contextlib.ExitStack) -> Any:
        from huggingface_hub import CommitOperationAdd

        if is_local(path):
            return CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
        if output["bytes"] <= SMALL_BYTES:
            return CommitOperationAdd(path_in_repo=name, path_or_fileobj=self.storage.read(path))
        return CommitOperationAdd(path_in_repo=name, path_or_fileobj=self._copy(path, output["bytes"], files))

    def _copy(self, path: str, size: int, files: contextlib.ExitStack) -> Any:
        """A remote output as a file without a name on this machine's disk."""
        file = files.enter_context(tempfile.TemporaryFile(prefix="stagger-"))  # noqa: SIM115
        for piece in self.storage.stream(path, size):
            file.write(piece)
        file.seek(0)
        return file


def retried(request: Callable[[], Answer]) -> Answer:
    """The answer to a request to the Hub; it is made again after a failure that may pass."""
    draw = random.Random()  # noqa: S311 # Waits, not secrets.
    failures = 0
    while True:
        try:
            return request()
        except Exception as error:
            failures += 1
            if failures == TRIES or not may_pass(error):
                raise
            logger.info(f"the Hub: {reason_of(error)}; trying again")
            time.sleep(full_jitter(failures + 2, draw))


def may_pass(error: BaseException) -> bool:
    """Whether a failure of a request may pass: by the Hub's answer, or because there was none."""
    status = status_of(error)
    if status is not None:
        return status in MAY_PASS
    return any(name in ("ConnectionError", "TimeoutException", "TransportError", "Timeout") for name in _kinds(error))


def _kinds(error: BaseException) -> Iterator[str]:
    return (kind.__name__ for kind in type(error).__mro__)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the Hub's answer; None if there was none."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def reason_of(error: BaseException) -> str:
    """An error in one line, without secrets."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    known = isinstance(error, StaggerError) or status_of(error) is not None
    return without_secrets(f"{'' if known else f'{type(error).__name__}: '}{text.rstrip('.')}")
