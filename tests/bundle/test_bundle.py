"""A task that runs from a bundle does what it does without: however stagger is installed, whatever has changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stagger.bundle import REQUEST
from stagger.bundle.cache import bundle_of
from tests.bundle.conftest import INSTALLATIONS, Task, packages_of

pytestmark = pytest.mark.each_version


def opened(task: Task, python: str, folder: Path) -> list[str]:
    """The files and folders that a start opens or looks for, in order."""
    task.start_plainly(python)  # Writes the byte code first.
    task.clear()
    return opened_by(task.command(python), folder)


def opened_by(command: list[str], folder: Path) -> list[str]:
    trace = folder / "trace"
    strace = ["strace", "-f", "-o", str(trace), "-e", "trace=%file,getdents64"]
    subprocess.run([*strace, *command], check=True, capture_output=True)
    return re.findall(r'"([^"]*)"', trace.read_text(errors="replace").partition("/my_probe")[0])


@pytest.mark.parametrize("installed", INSTALLATIONS)
def test_user_code_sees_the_same_interpreter(
    task: Task, pythons: dict[str, str], installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHILDREN", "yes")
    python = pythons[installed]
    task.start_plainly(python)
    plain = task.output
    task.bundle(python)
    assert task.start(python).count("bundle") == 0
    assert json.loads(json.loads(task.output)["text"]) == json.loads(json.loads(plain)["text"])
    assert task.output == plain


@pytest.mark.parametrize("installed", INSTALLATIONS)
def test_a_start_opens_no_modules_of_stagger_and_of_the_standard_library(
    task: Task, pythons: dict[str, str], installed: str, tmp_path: Path
) -> None:
    python = pythons[installed]
    task.bundle(python)
    own = opened_by([python, "-I", "-S", "-c", "pass"], tmp_path)  # Those of the interpreter itself.
    paths = opened(task, python, tmp_path)
    assert [path for path in paths if "__pycache__" in path and path not in own] == []


@pytest.mark.parametrize("damage", ["empty", "cut", "head", "code", "mode", "python", "folder", "none"])
def test_a_bundle_that_does_not_fit_is_not_used(task: Task, damage: str) -> None:
    task.start_plainly()
    plain = task.output
    bundle = task.bundle()
    data = bytearray(bundle.read_bytes())
    if damage == "empty":
        bundle.write_bytes(b"")
    elif damage == "cut":
        bundle.write_bytes(data[:1000])
    elif damage in ("head", "code"):
        for place in range(20 if damage == "head" else 60_000, 60_000 if damage == "head" else len(data), 997):
            data[place] ^= 0x55
        bundle.write_bytes(data)
    elif damage == "mode":
        bundle.chmod(0o666)
    elif damage == "python":
        data[:8] = bytes(8)
        bundle.write_bytes(data)
    elif damage == "folder":
        bundle.unlink()
        bundle.mkdir()
    else:
        bundle.unlink()
    lines = [line for line in task.start().splitlines() if "bundle" in line]
    assert task.output == plain
    assert len(lines) == (0 if damage in ("code", "none") else 1)


def test_a_bundle_of_another_user_is_not_used(task: Task) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(task.bundle(), 12345, -1)
    assert "other users could have written it" in task.start()


def test_an_edited_module_of_an_editable_installation_is_run_as_it_is_now(task: Task, tmp_path: Path) -> None:
    """A .pth file leads to the project's folder, which is no site-packages."""
    project = tmp_path / "project"
    shutil.copytree(Path(sys.modules["stagger"].__path__[0]), project / "stagger")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages_of(tmp_path / "venv") / "project.pth").write_text("\n".join([str(project), *others]) + "\n")
    python = str(tmp_path / "venv" / "bin" / "python")
    task.bundle(python)
    for file, line in (("pipeline/chain.py", "print('edited chain')"), ("task/__main__.py", "print('edited main')")):
        with (project / "stagger" / file).open() as module:
            text = module.read()
        (project / "stagger" / file).write_text(
            text.replace("\nimport os\n", f"\nimport os\n{line}\n", 1).replace(
                "\nimport functools\n", f"\nimport functools\n{line}\n", 1
            )
        )
        assert line.split("'")[1] in task.start(python)


def test_after_an_installation_of_packages_a_bundle_is_not_used(
    task: Task, pythons: dict[str, str], tmp_path: Path
) -> None:
    python = pythons["wheel"]
    task.bundle(python)
    assert not any(path.endswith("/stagger/ranks.py") for path in opened(task, python, tmp_path))
    new = packages_of(Path(python).parents[1]) / "new_package.py"
    new.touch()
    try:
        assert any(path.endswith("/stagger/ranks.py") for path in opened(task, python, tmp_path))
    finally:
        new.unlink()


def test_the_first_task_makes_a_bundle_that_the_launch_could_not_make(task: Task) -> None:
    """As in a container, whose Python the launch cannot run."""
    bundle = Path(task.settings).with_suffix(".bundle")
    bundle.write_bytes(REQUEST + b"stagger.steps.jsonl")
    bundle.chmod(0o600)
    task.start()
    plain = task.output
    assert bundle.stat().st_size > 500_000
    assert sorted(path.name for path in bundle.parent.glob("settings.*")) == ["settings.bundle", "settings.json"]
    assert "bundle" not in task.start()
    assert task.output == plain


def test_in_a_folder_that_is_read_only_tasks_run_without_a_bundle(task: Task) -> None:
    bundle = Path(task.settings).with_suffix(".bundle")
    bundle.write_bytes(REQUEST)
    bundle.chmod(0o600)
    fails = "import posix\ndef rename(*_): raise OSError(30, 'Read-only file system')\nposix.rename = rename\n"
    command = task.command()
    command[4] = command[4].replace("import sys\n", f"import sys\n{fails}", 1)
    assert task.run_command(command).count("Read-only file system") == 1
    assert bundle.read_bytes() == REQUEST


def test_a_launch_makes_a_bundle_once_and_again_when_a_module_has_changed(
    pythons: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = pythons["wheel"]
    first = bundle_of(python, ["stagger.steps.text"])
    assert first
    (kept,) = tmp_path.glob("stagger/bundles/*")
    before = kept.stat()
    assert bundle_of(python, ["stagger.steps.text"]) == first
    assert kept.stat() == before
    module = packages_of(Path(python).parents[1]) / "stagger" / "ranks.py"
    module.write_text(module.read_text() + "# edited\n")
    assert bundle_of(python, ["stagger.steps.text"]) != first
    kept.chmod(0o666)
    assert bundle_of(python, ["stagger.steps.text"])
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_bundle_needs_no_cache_and_an_interpreter_without_stagger_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert bundle_of(sys.executable, [])
    assert bundle_of(str(tmp_path / "no-python"), []) is None
    assert bundle_of("/bin/false", []) is None


#: Imports from the bundle argv[1] in a Python that runs.
FROM_THE_BUNDLE = """import marshal, os, sys, threading
from stagger.bundle import loader
file = os.open(sys.argv[1], os.O_RDONLY)
begin = 16 + int.from_bytes(os.pread(file, 8, 8), 'little')
_, facts, index = marshal.loads(os.pread(file, begin, 16))
bundle = loader.BundledModule.bundle = loader.Bundle(file, begin, index, facts)
for name in ('copy', 'dataclasses', 'inspect', 'platform', 'typing', 'uuid', 'zstandard'):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, bundle)
"""


def run_from_the_bundle(task: Task, program: str) -> None:
    bundle = str(task.bundle())
    subprocess.run([sys.executable, "-I", "-c", FROM_THE_BUNDLE + program, bundle], check=True)


def test_inspect_is_executed_when_it_is_first_used(task: Task) -> None:
    """dataclasses imports inspect, and hardly ever uses it."""
    run_from_the_bundle(
        task,
        "import inspect\n"
        "assert 'inspect' in index and facts['path']\n"
        "assert 'signature' not in object.__getattribute__(inspect, '__dict__')\n"
        "found = []\n"
        "use = lambda: found.append(inspect.getsource(inspect.unwrap))\n"
        "threads = [threading.Thread(target=use) for _ in range(9)]\n"
        "[one.start() for one in threads], [one.join() for one in threads]\n"
        "assert len(found) == 9 and set(map(len, found)) != {0}, found\n"
        "assert type(inspect) is type(sys) and not hasattr(inspect, 'nothing')\n",
    )


def test_dataclasses_asks_inspect_for_annotations(task: Task) -> None:
    """From Python 3.12 on."""
    run_from_the_bundle(
        task,
        "import dataclasses, inspect, typing\n"
        "class Base:\n"
        "    first: 'int'\n"
        "    kept: 'typing.ClassVar[int]' = 3\n"
        "class Own(Base):\n"
        "    second: int = 2\n"
        "class Bare(Own): ''\n"
        "made = [dataclasses.dataclass(each) for each in (Base, Own, Bare)]\n"
        "assert [[field.name for field in dataclasses.fields(each)] for each in made] == "
        "[['first'], ['first', 'second'], ['first', 'second']]\n"
        "assert dataclasses.make_dataclass('Made', ['a', ('b', int)])(1, 2).b == 2\n"
        "assert inspect.get_annotations(Own) == {'second': int} and type(inspect) is type(sys)\n",
    )


def test_platform_is_executed_when_somebody_asks_for_more_than_uuid_and_zstandard_do(task: Task) -> None:
    run_from_the_bundle(
        task,
        "import os, uuid, zstandard, platform\n"
        "assert type(platform) is loader.Late and zstandard.backend == 'cext' and uuid.uuid4()\n"
        "assert [uuid._AIX, uuid._LINUX] == [False, sys.platform == 'linux']\n"
        "platform.node = lambda: 'mine'\n"
        "assert type(platform) is type(sys)\n"
        "assert [platform.system(), platform.node()] == [os.uname().sysname, 'mine']\n",
    )


def test_what_a_task_imports_executes_neither_copy_nor_inspect_nor_platform(task: Task) -> None:
    run_from_the_bundle(
        task,
        "import stagger.task.__main__, stagger.task.commit, stagger.task.attempt_records, stagger.steps.jsonl\n"
        "import copy, inspect, platform\n"
        "assert {type(copy), type(inspect), type(platform)} == {loader.Late}\n"
        "assert copy.deepcopy([{}]) == [{}] and type(copy) is type(sys)\n",
    )


@pytest.mark.parametrize("then", ["", "os.open('/dev/zero', os.O_RDONLY)\n", "os.pipe()\n"])
def test_a_program_may_close_all_files(task: Task, then: str) -> None:
    """As daemons do. Their numbers may go to other files."""
    run_from_the_bundle(
        task,
        f"os.closerange(3, 99)\n{then}"
        "import dataclasses, stagger.steps.jsonl\n"
        "assert dataclasses.dataclass and bundle.code('dataclasses') is None\n",
    )


@pytest.mark.parametrize(
    "use", ["from platform import system", "from platform import *", "dir(platform).index('system')"]
)
def test_a_late_module_has_all_its_names(task: Task, use: str) -> None:
    run_from_the_bundle(
        task,
        f"import platform\n{use}\nmodule = sys.modules['platform']\n"
        "assert module.system.__module__ == 'platform' and 'node' in vars(module)\n",
    )


def test_a_late_module_can_be_loaded_again(task: Task) -> None:
    run_from_the_bundle(
        task,
        "import importlib, platform\n"
        "platform.node = None\n"
        "assert importlib.reload(platform).node() is not None and type(platform) is type(sys)\n",
    )


def test_what_modules_compile_is_compiled_once(task: Task) -> None:
    """But not what the user's own classes need, because the bundle does not have it."""
    run_from_the_bundle(
        task,
        "done = []\n"
        "def note(call): return lambda what, *more: (done.append(type(what)), call(what, *more))[1]\n"
        "loader.exec, loader.eval, loader.compile = note(exec), note(eval), note(compile)\n"
        "from stagger.steps.jsonl import ReadJsonl, WriteJsonl\n"
        "from stagger.pipeline import Document, Shard\n"
        "assert len(done) > 5 and str not in done, done\n"  # From Python 3.13 on, one for all methods of a class.
        "assert Document('a', 'b') == Document('a', 'b') != Document('a', 'c')\n"
        "assert repr(Document('a', 'b')) == \"Document(text='a', id='b', media=[], metadata={})\"\n"
        "assert Shard('a', 1) == ('a', 1, '')\n"
        "from dataclasses import dataclass\n"
        "Own = dataclass(type('Own', (), {'__annotations__': {'odd_name': int}, '__module__': '__main__'}))\n"
        "assert repr(Own(3)) == 'Own(odd_name=3)' and done[-1] is str\n"
        "from typing import NamedTuple\n"
        "assert repr(NamedTuple('Own', [('odd_name', 'odd_type')])(3)) == 'Own(odd_name=3)'\n",
    )


def test_expressions_of_modules_are_compiled_once(task: Task) -> None:
    """But not those of the user."""
    run_from_the_bundle(
        task,
        "import re as plain\n"
        "for name in ('re', loader.REGEX_COMPILER, 'json.decoder', 'json.scanner'): sys.modules.pop(name, 0)\n"
        "import re\n"
        "compiler = sys.modules[loader.REGEX_COMPILER]\n"
        "done = []\n"
        "def code(pattern, flags, _code=compiler._code): done.append(pattern); return _code(pattern, flags)\n"
        "compiler._code = code\n"
        "import json, dataclasses, typing, stagger.steps.jsonl\n"
        "assert done == [] and len(bundle.compiled()[loader.REGEX_COMPILER]) > 10\n"
        "for text, flags in bundle.compiled()[loader.REGEX_COMPILER]:\n"
        "    one, other = re.compile(text, flags), plain.compile(text, flags)\n"
        "    assert repr(one) == repr(other) and type(one) is type(other)\n"
        "    assert [one.flags, one.groups, one.groupindex] == [other.flags, other.groups, other.groupindex]\n"
        "    for said in ('', '-1.5e3', 'typing.ClassVar[int]', 'a:b', '  \\t\\n'):\n"
        "        said = said if isinstance(text, str) else said.encode()\n"
        "        assert [m.groups() for m in one.finditer(said)] == [m.groups() for m in other.finditer(said)]\n"
        "assert done == []\n"
        "assert re.compile('(?P<odd>x+)y').match('xxy')['odd'] == 'xx' and len(done) == 1\n",
    )


def test_datetime_is_the_one_in_c(task: Task) -> None:
    run_from_the_bundle(
        task,
        "import datetime as plain\n"
        "sys.modules.pop('datetime')\n"
        "import datetime, pickle\n"
        "names = lambda module: {name for name in vars(module) if not name.startswith('__')}\n"
        "assert names(datetime) == names(plain) and datetime.__all__ == plain.__all__\n"
        "assert [datetime.__doc__, datetime.__file__, datetime.__spec__.origin] == "
        "[plain.__doc__, plain.__file__, plain.__spec__.origin]\n"
        "now = datetime.datetime.now(datetime.timezone.utc)\n"
        "assert pickle.loads(pickle.dumps(now)) == now and type(now) is plain.datetime\n",
    )


def test_a_folder_that_a_step_puts_first_comes_first(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its modules replace those of the same name that are not imported yet."""
    (tmp_path / "isal").mkdir()
    (tmp_path / "isal" / "__init__.py").write_text("")
    (tmp_path / "isal" / "igzip.py").write_text("")
    monkeypatch.setenv("FIRST", str(tmp_path))
    task.start_plainly()
    plain = task.output
    task.bundle()
    task.start()
    assert str(tmp_path / "isal" / "igzip.py").encode() in plain
    assert task.output == plain


def test_built_in_modules_are_not_looked_for_in_folders(task: Task, tmp_path: Path) -> None:
    """A file of the same name does not replace one, and the search would be a call for each folder of `sys.path`."""
    (tmp_path / "_stat.py").write_text("")
    run_from_the_bundle(task, f"sys.path.append({str(tmp_path)!r})\nassert bundle.find_spec('_stat') is None\n")
