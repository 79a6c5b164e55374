# stagger: run the module argv[1] from the bundle beside the settings argv[2]; if it does not fit, from its own files.
import sys

run = None
try:
    import _imp, marshal, posix  # noqa: E401, I001

    file = posix.open(sys.argv[2].removesuffix(".json") + ".bundle", posix.O_RDONLY | posix.O_CLOEXEC)
    info = posix.fstat(file)
    data = posix.read(file, info.st_size)
    posix.close(file)
    head = data[16 : 16 + int.from_bytes(data[8:16], "little")]
    if info.st_uid not in (posix.geteuid(), 0) or info.st_mode & 0o022:
        print("stagger: the bundle of modules is not used: other users could have written it", file=sys.stderr)
    elif data[:8] == b"to make\n":
        first = [sys.executable, "-I", "-m", "stagger.bundle.first", sys.argv[2]]
        posix.waitpid(posix.posix_spawn(sys.executable, first, posix.environ), 0)
    elif _imp.source_hash(sys.hexversion, head) != data[:8]:
        print("stagger: the bundle of modules is not used: it is damaged, or another Python's", file=sys.stderr)
    else:
        loader, facts, index = marshal.loads(head)
        exec(loader, scope := {"__name__": "stagger.bundle.loader"})
        run = scope["prepared"](data[16 + len(head) :], facts, index)
except Exception as error:
    if not isinstance(error, FileNotFoundError):
        print(f"stagger: the bundle of modules is not used: {error}", file=sys.stderr)
if run is None:
    posix.execv(sys.executable, [sys.executable, "-I", "-m", *sys.argv[1:]])
run()
