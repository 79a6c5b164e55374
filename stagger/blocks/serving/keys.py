"""The keys of a run: who may talk to its servers, and by which key a server is known. CurveZMQ, curve25519.

All clients of a run have one key pair. Its secret half lies in one file that only its owner may read, or in an
environment variable. A server accepts that key alone, has a key pair of its own process, and publishes the public half.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from stagger.errors import StaggerError
from stagger.storage.ownership import foreign
from stagger.storage.storage import is_local, join

#: The environment variable that may hold the secret key of a run's clients.
VARIABLE = "STAGGER_SWARM_KEY"

#: Name of the file with the secret key of a run's clients.
FILE = "swarm.key"

#: Characters of a key, in Z85 (ZeroMQ RFC 32).
CHARACTERS = 40


@dataclass(frozen=True)
class KeyPair:
    """A public and a secret key, in Z85. The secret one shows in no text."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> KeyPair:
        import zmq

        return cls(*zmq.curve_keypair())

    @classmethod
    def of(cls, secret: bytes, where: str) -> KeyPair:
        """The pair of a secret key. Raises StaggerError, which says `where` it was found, when it is none."""
        import zmq

        try:
            if len(secret) != CHARACTERS:
                raise ValueError
            return cls(zmq.curve_public(secret), secret)
        except (ValueError, KeyError, zmq.ZMQError):
            raise StaggerError(f"{where} holds no key of a swarm: a key has {CHARACTERS} characters (Z85).") from None


def key_path(stage_dir: str, folder: str | None = None) -> str:
    """The file with the secret key for the swarm in `stage_dir`: there, or in a folder for several runs."""
    if folder is None:
        return join(stage_dir, FILE)
    return join(folder, f"{hashlib.sha256(stage_dir.encode()).hexdigest()[:16]}.{FILE}")


def client_keys(path: str, environ: Mapping[str, str] = os.environ) -> KeyPair:
    """The key pair of a run's clients: from the environment, or from the file `path`, which the first caller makes.

    Raises StaggerError when the path is in a bucket, where a file is nobody's alone, and when others own the file or
    may read it.
    """
    check_place(path, environ)
    if told := environ.get(VARIABLE):
        return KeyPair.of(told.encode(), f"the environment variable {VARIABLE}")
    path = path.removeprefix("file://")
    try:
        return _read(path)
    except FileNotFoundError:
        _create(path, KeyPair.new().secret)
        return _read(path)


def check_place(path: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise StaggerError when the key can be neither in the file `path` nor in the environment."""
    if not environ.get(VARIABLE) and not is_local(path):
        raise StaggerError(
            f"the key of the swarm cannot be kept in {path}: a bucket has no files that only you may read. Set the"
            f" option `keys` of the host (blocks.host_options) to a folder of yours that all nodes share, or set"
            f" {VARIABLE} for all jobs."
        )


def remove_client_keys(path: str) -> None:
    """Remove the file of `client_keys`, once no server and no client of the run is left."""
    if is_local(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.removeprefix("file://"))


def is_key(credential: bytes, allowed: bytes) -> bool:
    """Whether the raw public key of a peer is `allowed`, which is in Z85. Takes equally long for all keys."""
    from zmq.utils import z85

    return hmac.compare_digest(credential, z85.decode(allowed))


def _read(path: str) -> KeyPair:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        info = os.fstat(file.fileno())
        if foreign(info) or info.st_mode & 0o077 or not stat.S_ISREG(info.st_mode):
            raise StaggerError(f"{path} must be a file that you alone can read (chmod 600): it is a secret key.")
        return KeyPair.of(file.read(CHARACTERS + 1), path)


def _create(path: str, secret: bytes) -> None:
    """Create the file whole, unless another process is first."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    new = f"{path}.{os.urandom(8).hex()}"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(new, path)
    except FileExistsError:
        return
    finally:
        os.unlink(new)
