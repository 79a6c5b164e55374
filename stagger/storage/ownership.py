"""Whom a local file or folder is trusted to. Its owner and mode decide, as in ssh's StrictModes (sshd_config(5))."""

from __future__ import annotations

import os
import stat


def foreign(info: os.stat_result, group: int | None = None) -> bool:
    """Whether a file or folder belongs to neither this process's user, nor root, nor the group with this id."""
    return info.st_uid not in (os.geteuid(), 0) and (group is None or info.st_gid != group)


def open_to_others(info: os.stat_result, group: int | None = None) -> str | None:
    """Who may write to a file or folder besides its owner and `group`, as a clause; None when nobody may.

    A symbolic link has no mode of its own.
    """
    if stat.S_ISLNK(info.st_mode):
        return None
    mode = stat.S_IMODE(info.st_mode)
    if mode & stat.S_IWOTH:
        return f"can be written by all users (mode {mode:04o})"
    if mode & stat.S_IWGRP and info.st_gid != group:
        return f"can be written by the group {group_name(info.st_gid)} (mode {mode:04o})"
    return None


def exposed(path: str) -> str | None:
    """Why another user could put something else in the place of `path`, as a sentence; None when nobody can.

    Each folder on the way to `path` counts, and each folder that a symbolic link on the way leads through: none may be
    writable by all users, unless its sticky bit reserves each entry for the entry's owner. As with the kernel's
    `protected_symlinks`, another user's link in such a folder is not followed.
    """
    place = "/"
    pending = [name for name in reversed(os.path.abspath(path).split("/")) if name]
    for _ in range(1000):  # Each link adds its target's names; a circle of links must end.
        if not pending:
            return None
        folder = os.lstat(place)
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            place = os.path.dirname(place)
            continue
        open_to_all = folder.st_mode & stat.S_IWOTH
        if open_to_all and not folder.st_mode & stat.S_ISVTX:
            return f"all users can rename what is in {place} (mode {stat.S_IMODE(folder.st_mode):04o})"
        entry = os.path.join(place, name)
        try:
            info = os.lstat(entry)
        except FileNotFoundError:
            return None
        if not stat.S_ISLNK(info.st_mode):
            place = entry
            continue
        if open_to_all and info.st_uid not in (os.geteuid(), 0, folder.st_uid):
            return f"{entry} is a link that belongs to {user_name(info.st_uid)}"
        target = os.readlink(entry)
        place = "/" if target.startswith("/") else place
        pending += reversed(target.split("/"))
    return f"too many links lead to {path}"


def user_name(user: int) -> str:
    """The name of a user id; `user 1234` when it has none, as often in a container."""
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def group_name(group: int) -> str:
    import grp

    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return f"{group}"


def is_member(user: int, group: int) -> bool:
    """Whether a user is a member of a group. A user without an account counts as one: only a member can give a file to
    its group (chown(2)).
    """
    if user == os.geteuid():
        return group == os.getegid() or group in os.getgroups()
    import pwd

    try:
        account = pwd.getpwuid(user)
    except KeyError:
        return True
    return group in os.getgrouplist(account.pw_name, account.pw_gid)
