"""What a process gives up before it runs generated code: Linux's seccomp and Landlock, through ctypes.

Both work without privileges and hold for root too, where a limit on processes does not. After `lock_down` the calling
process cannot start processes or programs, open sockets or signal anyone, and can write beneath one directory only.
Standard library alone: the judge's child imports it by its path.
"""

import contextlib
import ctypes
import os
import platform
import struct

_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_CLONE_THREAD = 0x10000
_NO_NEW_PRIVS, _SECCOMP = 38, 22

# By architecture: its audit number, the number of clone, and the system calls refused: sockets, processes, programs,
# signals, other processes' memory, namespaces, mounts, kernel modules, clocks.
_SYSTEMS = {
    "x86_64": (
        0xC000003E,
        56,
        "41 57 58 59 62 101 129 155 161 164 165 166 169 170 175 200 227 234 246 272 297 308 310 311 313 321 322 "
        "424 425 434 438",
    ),
    "aarch64": (
        0xC00000B7,
        220,
        "39 40 41 51 97 104 105 112 117 129 130 131 138 142 161 170 198 221 240 268 270 271 273 "
        "280 281 424 425 434 438",
    ),
}
_CLONE3 = 435

# Landlock's rights that change the file system, by the version of its interface that brought them.
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_WRITE_RIGHTS = {1: _WRITE_FILE | sum(1 << bit for bit in range(4, 13)), 2: 1 << 13, 3: _TRUNCATE}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _VERSION_FLAG, _PATH_BENEATH = 444, 445, 446, 1, 1


def lock_down(writable: str) -> None:
    """Restricts the calling process as far as the kernel can; what it cannot do is left to the other limits.

    Args:
        writable: the one directory beneath which files may be created, written and removed.
    """
    if platform.system() != "Linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return
    with contextlib.suppress(OSError):
        _restrict_writing(libc, writable)
    with contextlib.suppress(OSError, KeyError):
        _restrict_calls(libc)


def _restrict_writing(libc: ctypes.CDLL, writable: str) -> None:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    if version < 1:
        return
    rights = sum(bits for since, bits in _WRITE_RIGHTS.items() if since <= version)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, struct.pack("=Q", rights), ctypes.c_size_t(8), 0))
    for path, allowed in ((writable, rights), (os.devnull, rights & (_WRITE_FILE | _TRUNCATE))):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, folder), 0))
        os.close(folder)
    _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _restrict_calls(libc: ctypes.CDLL) -> None:
    architecture, clone, refused = _SYSTEMS[platform.machine()]
    refuse = _ERRNO | _EPERM
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),  # the architecture; one that is not this one's has other numbers
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, refuse),
        (_LOAD, 0, 0, 0),  # the number of the call; x32's begin at 2^30
        (_AT_LEAST, 0, 1, 0x40000000),
        (_RETURN, 0, 0, refuse),
        (_EQUAL, 0, 1, _CLONE3),  # its flags are behind a pointer; without it the C library falls back to clone
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
    ]
    for number in refused.split():
        steps += [(_EQUAL, 0, 1, int(number)), (_RETURN, 0, 0, refuse)]
    steps += [
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, 16),  # clone's flags: a thread is fine, a process is not
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, _ALLOW),
    ]
    program = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("@HP", len(steps), ctypes.addressof(buffer))
    _checked(libc.prctl(_SECCOMP, 2, ctypes.c_char_p(filters), 0, 0))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
