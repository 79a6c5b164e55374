# stagger: run the module argv[1] from the bundle beside the settings argv[2]; if it does not fit, from its own files.
import sys


def bundled():
    import _imp, marshal, posix

    path = sys.argv[2].removesuffix(".json") + ".bundle"
    file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    info = posix.fstat(file)
    begin = posix.pread(file, 16, 0)
    if info.st_uid not in (posix.geteuid(), 0) or info.st_mode & 0o022:
        raise PermissionError("other users could have written it")
    if begin[:8] == b"to make\n":
        posix.rename(path, path + ".making")
        first = [sys.executable, "-I", "-m", "stagger.bundle.first", path + ".making"]
        posix.waitpid(posix.posix_spawn(sys.executable, first, posix.environ), 0)
        return None
    size = int.from_bytes(begin[8:], "little")
    head = posix.pread(file, size, 16) if size < info.st_size else b""
    if _imp.source_hash(sys.hexversion, head) != begin[:8]:
        raise ValueError("it is damaged, or made by another Python")
    loader, facts, index = marshal.loads(head)
    scope = {"__name__": "stagger.bundle.loader"}
    exec(loader, scope)
    return scope["prepared"](file, 16 + size, facts, index)


if __name__ == "__main__":
    run = None
    try:
        run = bundled()
    except FileNotFoundError:
        pass
    except Exception as error:
        print(f"stagger: the bundle of modules is not used: {error}", file=sys.stderr)
    if run is None:
        __import__("posix").execv(sys.executable, [sys.executable, "-I", "-m", *sys.argv[1:]])
    run()
