"""Imports modules from a bundle. This module's code lies in the bundle itself, and boot.py runs it.

It runs in a process that has not imported `site` (`python -S`), and repeats what `site` did when the bundle was made.
It may import only what is built into every Python.
"""

import _imp
import _sre  # type: ignore[import-not-found]
import _thread
import gc
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader, PathFinder, SourceFileLoader, spec_from_file_location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import Any

    #: Of a file or folder: the time of its last change in ns, and its size in bytes.
    Stamp = tuple[int, int]

    #: A module's file, and its stamp if each import has to check it; of a module in the bundle also where its code
    #: begins and ends, and the hash of the code. An extension module has no hash.
    Entry = tuple[str, Stamp | None, int, int, bytes]

#: Modules that try to import one of Jython's: CPython would look for it in every folder of `sys.path`.
JYTHON = ("copy", "pickle")

#: Modules that others import, and of which they use hardly more than ASKED.
LATE = ("copy", "inspect", "platform")

#: The module by which `re` compiles expressions. The bundle has what becomes of those that modules compile.
REGEX_COMPILER = "re._compiler" if sys.version_info >= (3, 11) else "sre_compile"

#: Modules that compile text while others are imported: the methods of dataclasses, those of named tuples, the
#: annotations of these. With what they do it; its first argument is the text. The bundle has the code.
COMPILING = {"dataclasses": "exec", "collections": "eval", "typing": "compile"}

#: What modules call of a late one, which answers without being executed. The bundle has the answers of platform.
PLATFORM = {"uuid": "system", "zstandard": "python_implementation"}
ASKED = {**PLATFORM, "dataclasses": "get_annotations"}


def folder_of(file: "str") -> "str":
    """The folder in which a module was found: of a package, the one that holds its folder."""
    folder, _, name = file.rpartition("/")
    return folder.rpartition("/")[0] if name.startswith("__init__.") else folder


def stamp(path: "str") -> "Stamp | None":
    """The stamp of a file as it is now; None if there is none."""
    try:
        info = posix.stat(path)
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size


class Bundle:
    """Finds the modules of a bundle, for `sys.meta_path`. Leaves to other finders those whose files have changed, and
    those that may lie in another folder than when the bundle was made.

    `path` is `sys.path` at that time. Its first `known` folders hold the top-level modules and folders `names`, and no
    others. The code lies in the open file `file`, from byte `begin` on.
    """

    def __init__(self, file: "int", begin: "int", index: "dict[str, Entry]", facts: "dict[str, Any]") -> None:
        self.file = file
        self.begin = begin
        self.index = index
        self.path = facts["path"]
        self.known = facts["known"]
        self.names = facts["names"]
        self.platform = facts["platform"]
        self._compiled: Any = facts["compiled"]

    def find_spec(self, name: "str", path: "Any" = None, target: "object" = None) -> "ModuleSpec | None":
        entry = self.index.get(name)
        if path is None:
            if sys.path[: len(self.path)] != self.path:  # Somebody's folder comes first.
                return None
            if entry is None:
                return self.elsewhere(name)
        elif entry is None or folder_of(entry[0]) not in path:
            return None
        return self.spec(name, entry)

    def spec(self, name: "str", entry: "Entry") -> "ModuleSpec | None":
        file, checked, _, _, digest = entry
        if checked is not None and checked != stamp(file):
            return None
        if not digest:
            return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))
        folder, _, base = file.rpartition("/")
        spec = ModuleSpec(name, BundledModule(name, file), origin=file, is_package=base == "__init__.py")
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(folder)
        spec.has_location = True
        if sys.pycache_prefix is None:  # Else Python finds out itself, when it is asked for.
            spec.cached = f"{folder}/__pycache__/{base[:-3]}.{sys.implementation.cache_tag}.pyc"
        return spec

    def elsewhere(self, name: "str") -> "ModuleSpec | None":
        """Find a module of the user's own without a look into the folders that are known not to have it."""
        if name in self.names or len(sys.path) == self.known:
            return None
        return PathFinder.find_spec(name, sys.path[self.known :])

    def code(self, name: "str") -> "CodeType | None":
        """The code of a module; None if it is damaged."""
        found: CodeType | None = self.load(*self.index[name][2:])
        return found

    def compiled(self) -> "dict[str, dict[Any, Any]]":
        """The code of texts, by the module that would compile them."""
        if type(self._compiled) is tuple:  # Where it lies.
            self._compiled = self.load(*self._compiled) or {}
        found: dict[str, dict[Any, Any]] = self._compiled
        return found

    def answer(self, name: "str") -> "Callable[..., Any]":
        """The function of a late module that others ask for."""
        if name == "get_annotations":
            return lambda cls: dict(vars(cls).get("__annotations__") or {})
        return lambda: self.platform[name]

    def load(self, begin: "int", end: "int", digest: "bytes") -> "Any":
        """What lies in a part of the bundle; None if it is damaged, or the program has closed all files."""
        try:
            data = posix.pread(self.file, end - begin, self.begin + begin)
        except OSError:
            return None
        return marshal.loads(data) if _imp.source_hash(0, data) == digest else None


class BundledModule(SourceFileLoader):
    """Loads a module as from its own file, which its tracebacks, its source and its resources come from."""

    bundle: "Bundle"

    def get_code(self, fullname: "str") -> "CodeType | None":
        return self.bundle.code(fullname) or super().get_code(fullname)

    def exec_module(self, module: "ModuleType") -> None:
        name = module.__name__
        if name in LATE and name not in delayed:
            delayed.add(name)
            module.__class__ = Late
            return
        absent = name in JYTHON and "org" not in sys.modules
        if absent:
            sys.modules["org"] = None  # type: ignore[assignment] # An import of it fails at once.
        try:
            super().exec_module(module)
        finally:
            if absent:
                del sys.modules["org"]
        if name == "subprocess":
            with_site(module)
        elif name in COMPILING:
            with_compiled(module)
        elif name == REGEX_COMPILER:
            with_regexes(module)


#: Names of the modules that have been imported late, and of those that are being executed.
delayed: "set[str]" = set()
executing: "set[str]" = set()


class Late(type(sys)):  # type: ignore[misc]
    """A module that is executed when something of it is first used, as by importlib.util.LazyLoader."""

    lock = _thread.RLock()

    def __getattr__(self, name: "str") -> "Any":
        if ASKED.get(sys._getframe(1).f_globals.get("__name__", "")) == name:
            return BundledModule.bundle.answer(name)
        if not complete(self):
            raise AttributeError(name)
        return getattr(self, name)

    def __setattr__(self, name: "str", value: "Any") -> "None":
        complete(self)
        type(sys).__setattr__(self, name, value)  # Not by super(): it may be no object of this class any more.

    def __dir__(self) -> "list[str]":
        complete(self)
        return list(type(sys).__dir__(self))


def complete(module: "Any") -> "bool":
    """Execute a module that was imported late. False if this is already being done, further up the stack."""
    with Late.lock:
        if type(module) is Late:
            if module.__name__ in executing:
                return False
            executing.add(module.__name__)
            try:
                module.__spec__.loader.exec_module(module)
                module.__class__ = type(sys)  # type: ignore[assignment]
            finally:
                executing.remove(module.__name__)
    return True


def with_compiled(module: "Any") -> "None":
    """Let a module take the code of texts from the bundle. It compiles others, such as those of the user's classes."""
    codes = BundledModule.bundle.compiled().get(module.__name__, {})

    def executed(text: "str", *scopes: "Any") -> "None":
        exec(codes.get(text, text), *scopes)

    def evaluated(text: "str", *scopes: "Any") -> "Any":
        return eval(codes.get(text, text), *scopes)  # noqa: S307 # As the module would.

    def compiled(text: "str", *how: "Any") -> "CodeType":
        code: CodeType = codes.get(text) or compile(text, *how)
        return code

    name = COMPILING[module.__name__]
    setattr(module, name, {"exec": executed, "eval": evaluated, "compile": compiled}[name])


def with_regexes(compiler: "Any") -> "None":
    """Let `re` take compiled expressions from the bundle. It compiles others, such as those of the user's modules."""
    codes = BundledModule.bundle.compiled().get(REGEX_COMPILER, {})
    compile_text = compiler.compile

    def compiled(pattern: "Any", flags: "int" = 0) -> "Any":
        code = codes.get((pattern, flags))
        return _sre.compile(pattern, *code) if code else compile_text(pattern, flags)

    compiler.compile = compiled


def with_site(subprocess: "Any") -> None:
    """Let Python children that get this process's options, as those of multiprocessing do, import `site`."""
    options = subprocess._args_from_interpreter_flags
    subprocess._args_from_interpreter_flags = lambda: [option for option in options() if option != "-S"]


def prepared(
    file: "int", begin: "int", facts: "dict[str, Any]", index: "dict[str, Entry]"
) -> "Callable[[], None] | None":
    """Make this process import from a bundle. Returns what runs the program; None if the bundle does not fit.

    The modules' code lies in the open file `file`, from byte `begin` on: most of a bundle is never read.
    """
    if facts["python"] != (sys.version, sys.executable):
        return None
    for folder, changed in facts["folders"].items():
        if stamp(folder) != changed:
            return None
    bundle = Bundle(file, begin, index, facts)
    BundledModule.bundle = bundle
    name = f"{sys.argv[1]}.__main__"
    spec = bundle.spec(name, index[name]) if name in index else None
    code = bundle.code(name) if spec is not None else None
    if spec is None or code is None:
        return None
    sys.meta_path.insert(0, bundle)
    add_site(facts)
    gc.disable()  # Imports make no garbage. The program enables it again.
    return lambda: run(spec, code)


def add_site(facts: "dict[str, Any]") -> None:
    """Repeat what `site` did: the paths, the names that it adds to `builtins`, the lines of code in .pth files."""
    sys.path[:] = facts["path"]
    for name, value in facts["sys"].items():
        setattr(sys, name, value)
    import site

    site.ENABLE_USER_SITE = facts["user_site"]
    site.setquit()
    site.setcopyright()
    site.sethelper()
    for sitedir, line in facts["lines"]:
        execute(sitedir, line)
    if facts["customized"]:
        site.execsitecustomize()


def execute(sitedir: "str", line: "str") -> None:
    """Execute a line of a .pth file. The line may look into this frame for `sitedir`, as setuptools' lines do."""
    try:
        exec(line)
    except Exception as error:
        print(f"stagger: a .pth file in {sitedir}: {line.strip()}: {error}", file=sys.stderr)


def run(spec: "ModuleSpec", code: "CodeType") -> None:
    """Run a module as `python -m` does."""
    package = spec.name.rpartition(".")[0]
    __import__(package)
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    vars(module).update(
        __file__=spec.origin, __cached__=spec.cached, __loader__=spec.loader, __package__=package, __spec__=spec
    )
    sys.argv[:2] = [str(spec.origin)]
    exec(code, vars(module))
