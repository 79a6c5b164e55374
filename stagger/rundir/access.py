"""Who may change a run. Commands that run its code or stop its processes first check who else could have changed it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator

from stagger.errors import StaggerError
from stagger.storage.local_files import SHARED_FOLDER, SHARED_UMASK, make_folder
from stagger.storage.ownership import exposed, foreign, group_name, is_member, open_to_others, user_name
from stagger.storage.storage import is_local, join

#: Folders of a stage whose files name the code to run. Every entry of theirs is checked.
CODE_FOLDERS = ("plan", "launches")

#: The user id of users that NFS and Lustre trust nothing, such as root on a client (root_squash, exports(5)).
NOBODY = 65534


@contextlib.contextmanager
def changing(run_dir: str, stage_folders: Iterable[str], shared: bool) -> Iterator[None]:
    """Check that only trusted users can have changed the run, and create its files for them.

    Trusted are this user and root; of a run that is `shared` by a group, also the members of its folder's group. Files
    of a shared run get the modes 0660 and 2770, whatever the umask. Raises StaggerError when somebody else owns one of
    the files that name code or processes, or may write to it. A run that does not exist yet passes.
    """
    if not is_local(run_dir):
        yield
        return
    check_run(run_dir, stage_folders, shared)
    if not shared:
        yield
        return
    before = os.umask(SHARED_UMASK)
    try:
        yield
    finally:
        os.umask(before)


def check_run(run_dir: str, stage_folders: Iterable[str], shared: bool) -> None:
    """Raise StaggerError when others than the trusted users may change the run, or have a file in it."""
    if reason := exposed(run_dir):
        raise StaggerError(f"{run_dir} is not safe: {reason}. Choose a run_dir in a folder of your own.")
    if not os.path.lexists(run_dir):
        return
    group = shared_group(run_dir) if shared else None
    checked = Checked(run_dir, group)
    if group is None or not is_new(run_dir, os.stat(run_dir)):
        checked.check(run_dir)
    for folder in dict.fromkeys((run_dir, *stage_folders)):
        checked.check_entries(folder)
        for name in CODE_FOLDERS:
            checked.check_entries(join(folder, name))
        for launch in names_in(join(folder, "launches")):
            checked.check_entries(join(folder, "launches", launch))
        checked.check_links(join(folder, "logs"))


class Checked:
    """Checks files of one run. `group` is the group id that shares it, or None."""

    def __init__(self, run_dir: str, group: int | None) -> None:
        self._run_dir = run_dir
        self._group = group

    def check(self, path: str) -> None:
        """Check a file or folder. For a link, both the link's owner and the file behind it count."""
        info = os.lstat(path)
        self._check_info(path, info)
        if stat.S_ISLNK(info.st_mode):
            with contextlib.suppress(FileNotFoundError):
                self._check_info(path, os.stat(path))

    def check_entries(self, folder: str) -> None:
        """Check everything that lies directly in a folder, if there is one."""
        for name in names_in(folder):
            with contextlib.suppress(FileNotFoundError):  # Temporary files vanish.
                self.check(join(folder, name))

    def check_links(self, folder: str) -> None:
        """Check the links in a folder of many entries. Costs one listing, and no call for each entry."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    self.check(entry.path)

    def _check_info(self, path: str, info: os.stat_result) -> None:
        if foreign(info, self._group):
            raise StaggerError(self._not_yours(path, info))
        if clause := open_to_others(info, self._group):
            raise StaggerError(
                f"{path} {clause}, and could change what stagger runs. Take that right away: chmod -R go-w"
                f" {self._run_dir}; if a team shares the run, write `shared: group`."
            )

    def _not_yours(self, path: str, info: os.stat_result) -> str:
        owner = user_name(info.st_uid)
        text = f"{path} belongs to {owner}, and stagger would run that user's code as {user_name(os.geteuid())}."
        if info.st_uid == NOBODY:
            return f"{text} If it is your own: the file server maps users (root_squash); run stagger as another user."
        if os.geteuid() == 0:
            return f"{text} Run the command as that user: sudo -u {owner} stagger ..."
        return f"{text} Use a run_dir of your own; a team shares a run with `shared: group`."


def shared_group(run_dir: str) -> int:
    """The id of the group that shares a run. Raises StaggerError unless this user and the owner are members of it."""
    info = os.stat(run_dir)
    group = group_name(info.st_gid)
    if not is_member(os.geteuid(), info.st_gid):
        raise StaggerError(
            f"{run_dir} belongs to {user_name(info.st_uid)} and is shared by the group {group}: stagger would run their"
            f" code as {user_name(os.geteuid())}, who is no member of {group}. Run it as a member."
        )
    if not is_member(info.st_uid, info.st_gid):
        raise StaggerError(
            f"{run_dir} belongs to {user_name(info.st_uid)}, who is no member of the group {group} that shares it."
            " Use a run_dir that a member owns."
        )
    if stat.S_IMODE(info.st_mode) & SHARED_FOLDER != SHARED_FOLDER and not is_new(run_dir, info):
        raise StaggerError(
            f"{run_dir} has mode {stat.S_IMODE(info.st_mode):04o}, but a run with `shared: group` needs 2770. Give this"
            f" run a new run_dir; or share the old one: chmod -R g+rwX,o-rwx {run_dir}; find {run_dir} -type d -exec"
            " chmod g+s {} +"
        )
    return info.st_gid


def is_new(run_dir: str, info: os.stat_result) -> bool:
    """Whether a folder is this user's, to be made a shared run: `create_run` gives it the mode."""
    return info.st_uid == os.geteuid() and not os.path.lexists(join(run_dir, "run.json"))


def create_run(run_dir: str, shared: bool) -> None:
    """Create the run directory: private to its owner, or to its group. Does nothing on an object store.

    A folder that is there already keeps its group, and if it is private also its mode. Raises StaggerError when files
    made there belong to somebody else.
    """
    if not is_local(run_dir):
        return
    make_folder(run_dir, 0o770 if shared else 0o700)
    info = os.stat(run_dir)
    if shared and info.st_uid == os.geteuid():
        os.chmod(run_dir, SHARED_FOLDER)
    check_run(run_dir, (), shared)


def check_folder(path: str, shared: bool) -> None:
    """Check a folder outside the run directory that jobs write to. Raises StaggerError as `changing` does."""
    Checked(path, os.stat(path).st_gid if shared else None).check(path)


def share_folder(path: str, run_dir: str) -> None:
    """Give a new folder of this user to the group that shares the run."""
    os.chown(path, -1, os.stat(run_dir).st_gid)
    os.chmod(path, SHARED_FOLDER)


def names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
