"""A real S3 store on this machine: Ceph's monitor, one OSD in memory, and the object gateway (RGW), all on loopback.

As a program it prints one JSON line with its endpoint and version, and runs until its standard input is closed:

    python -m tests.rgw.gateway

Then it stops the daemons and removes their folder. If it is killed itself, the kernel kills the daemons. The user's
access key is `key`, and the secret key is `secret`. `install.sh` beside this file installs the packages.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: Programs of the packages that install.sh installs.
PROGRAMS = ("ceph-authtool", "monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw-admin", "radosgw")

KEY, SECRET = "key", "secret"

#: Seconds to wait for the gateway, over all tries. An idle machine needs 10 s.
PATIENCE_S = 180.0

#: Starts to try: between the choice of a free port and a daemon's start, another program may take the port.
TRIES = 3

#: `auth = none` makes clients hang. A pool of one copy on one OSD needs every line about sizes and failure domains.
CONFIG = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = {folder}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
run dir = {folder}
admin socket =
pid file =
crash dir = {folder}
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
[mon]
mon data = {folder}/mon
paxos propose interval = 0.05
mon data avail warn = 1
mon data avail crit = 1
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 6442450944
osd crush initial weight = 1
osd class load list = *
osd class default list = *
[client]
rgw data = {folder}/rgw
rgw enable usage log = false
rgw thread pool size = 64
"""

#: Everybody with a key, and the options that say what they may do.
USERS = {
    "mon.": "--cap mon 'allow *'",
    "client.admin": "--cap mon 'allow *' --cap osd 'allow *'",
    "osd.0": "--cap mon 'allow profile osd' --cap osd 'allow *'",
    "client.rgw.a": "--cap mon 'allow *' --cap osd 'allow *'",
}


class NotStarted(Exception):
    """A step of the start failed. Its text names the step."""


class Ended(NotStarted):
    """A daemon ended by itself, as it does when another program has taken its port."""


@dataclass
class Gateway:
    """The daemons, with everything that they write in `folder`."""

    folder: Path
    mon_port: int
    port: int
    deadline: float  # By the monotonic clock.
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> tuple[str, str]:
        return "-c", f"{self.folder}/ceph.conf"

    def start(self) -> None:
        """Start all daemons, one after another. Raises NotStarted, or Ended."""
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        (self.folder / "ceph.conf").write_text(CONFIG.format(fsid=fsid, folder=self.folder, mon_port=self.mon_port))
        monmap, keyring = f"{self.folder}/monmap", f"{self.folder}/keyring"
        self.run("ceph-authtool", "--create-keyring", keyring)
        for name, allowed in USERS.items():
            self.run("ceph-authtool", keyring, "--gen-key", "-n", name, *shlex.split(allowed))
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{self.mon_port}]", monmap)
        self.run("ceph-mon", *self.config, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self.daemon("ceph-mon", "-i", "a")
        self.run("ceph", *self.config, "osd", "new", osd, "0")
        self.run("ceph-osd", *self.config, "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.daemon("ceph-osd", "-i", "0")
        user = ("--uid=tests", "--display-name=tests", f"--access-key={KEY}", f"--secret={SECRET}")
        self.run("radosgw-admin", *self.config, "user", "create", *user)  # Waits until the OSD is up.
        # Without tcp_nodelay a small GET takes 44 ms.
        listen = f"beast endpoint=127.0.0.1:{self.port} tcp_nodelay=1"
        self.daemon("radosgw", "-n", "client.rgw.a", "--rgw-frontends", listen)
        while not self.answers():
            self.wait(f"radosgw does not answer on {self.endpoint}")

    def run(self, *command: str) -> None:
        output = self.log()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as running:
            try:
                while running.poll() is None:
                    self.wait(f"{command[0]} does not end")
            finally:
                running.kill()
        if running.returncode:
            raise NotStarted(f"{command[0]} ended with exit status {running.returncode}")

    def wait(self, problem: str) -> None:
        """Wait a moment. Raises Ended when a daemon has ended, and NotStarted with `problem` at the deadline."""
        for name, daemon in self.daemons.items():
            if daemon.poll() is not None:
                raise Ended(f"{name} ended with exit status {daemon.returncode}")
        if time.monotonic() > self.deadline:
            raise NotStarted(problem)
        time.sleep(0.05)

    def daemon(self, name: str, *options: str) -> None:
        """Start a daemon that the kernel kills when this process ends."""
        command = ["setpriv", "--pdeathsig", "KILL", name, *self.config, "-f", *options]
        output = self.log()
        self.daemons[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def log(self) -> int:
        """A descriptor of the log of all commands, open for appending."""
        return os.open(self.folder / "commands.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def logs(self) -> str:
        """The last lines of each log."""
        parts = [f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in self.folder.glob("*.log")]
        return "\n".join(parts)

    def stop(self) -> None:
        """Kill the daemons, the gateway first: their state is in memory, and nobody needs it."""
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def version() -> str:
    """Ceph's version, as in `ceph version 16.2.15 (...) pacific (stable)`."""
    return subprocess.run(["radosgw", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]


@contextlib.contextmanager
def started() -> Iterator[Gateway]:
    """A gateway of this process, in a folder of its own. Raises NotStarted, with the logs."""
    deadline = time.monotonic() + PATIENCE_S
    for left in reversed(range(TRIES)):
        with tempfile.TemporaryDirectory(prefix="stagger-rgw-", ignore_cleanup_errors=True) as folder:
            mon_port, port = free_ports(2)
            gateway = Gateway(Path(folder), mon_port, port, deadline)
            try:
                gateway.start()
                yield gateway
                return
            except NotStarted as error:
                if not (left and isinstance(error, Ended)):
                    raise NotStarted(f"{error}\n{gateway.logs()}") from error
            finally:
                gateway.stop()


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The endpoint of a gateway in its own process, so that forks and kills of tests do not touch it."""
    command = [sys.executable, "-m", __name__]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise NotStarted("the gateway did not start; its standard error names the reason")
            yield json.loads(line)["endpoint"]
        finally:
            process.stdin.close()


def main() -> None:
    if absent := missing():
        sys.exit(f"gateway: {', '.join(absent)} not found; run tests/rgw/install.sh")
    # A terminal's Ctrl+C reaches the whole group: pytest closes our standard input after its last test.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with started() as gateway:
            print(json.dumps({"endpoint": gateway.endpoint, "version": version()}), flush=True)
            sys.stdin.read()
    except NotStarted as error:
        sys.exit(f"gateway: {error}")


if __name__ == "__main__":
    main()
