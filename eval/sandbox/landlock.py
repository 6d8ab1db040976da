"""Which files generated code may read, and that it may change none: Linux's Landlock, through ctypes."""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _VERSION_FLAG, _PATH_BENEATH = 444, 445, 446, 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# By the version of Landlock's interface: how many file-system rights, network rights and scopes it knows.
_RIGHTS = ((1, 13, 0, 0), (2, 14, 0, 0), (3, 15, 0, 0), (4, 15, 2, 0), (5, 16, 2, 0), (6, 16, 2, 2))


def restrict_files(libc: ctypes.CDLL, readable: Iterable[str]) -> None:
    """Lets the calling process and all it starts read beneath `readable` and touch no other file, for good.

    It needs PR_SET_NO_NEW_PRIVS before. Paths that do not exist are passed over. Where the kernel can, TCP and signals
    to processes outside are refused as well.

    Raises:
        OSError: a kernel without Landlock.
    """
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    if version < 1:
        raise OSError(
            ctypes.get_errno(), "the kernel has no Landlock (it came with Linux 5.13 and may be switched off)"
        )
    _, files, network, scopes = max(entry for entry in _RIGHTS if entry[0] <= version)
    fields = [(1 << files) - 1, (1 << network) - 1, (1 << scopes) - 1]
    size = 8 * (1 + (version >= 4) + (version >= 6))
    ruleset = _checked(libc.syscall(_CREATE_RULESET, struct.pack("=3Q", *fields), ctypes.c_size_t(size), 0))
    try:
        for path in readable:
            _allow(libc, ruleset, path)
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = _READ_FILE | (_READ_DIR if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 0)
        _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
