"""
Who consumes: the text that names an owner of leases, and what it tells of his fate.

Law: an owner is declared gone only where that is certain: a process of this machine, seen
by its number in the same place, that does not run any more. Everybody else is waited for.
"""

from __future__ import annotations

import os
from functools import cache

__all__ = ["is_gone", "owner"]


def owner() -> str:
    """
    Return what this process goes by.
    """
    return f"{_place()} pid {os.getpid()} {_life(os.getpid())}"


def is_gone(text: str) -> bool:
    """
    Whether the process of that name is known not to run any more.

    What follows the name, as one of several that a process goes by, says nothing of it.
    """
    place, _, process = text.rpartition(" pid ")
    number, _, rest = process.partition(" ")
    life = rest.partition(" ")[0]
    if os.name != "posix" or place != _place() or not number.isdecimal():
        return False
    if int(number) == os.getpid():
        return life != _life(os.getpid())
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is another user's, or no process ever had it
        return False
    return _is_dead(int(number))


def _is_dead(pid: int) -> bool:
    """
    Whether a process has ended, and only its parent has not asked how yet.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            told = file.read()
    except OSError:  # there is no such place, or the process has just gone
        return False
    return told.rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])


@cache
def _life(pid: int) -> str:
    # Tells a process from one that had its number before.
    return os.urandom(6).hex()


@cache
def _place() -> str:
    """
    Name where process numbers mean something: a machine since it started, or a container.
    """
    import platform  # late: for start-up time

    return " ".join([platform.node() or "?", _boot(), _namespace()]).strip()


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(8)
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return ""
