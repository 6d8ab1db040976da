"""What a process gives up before it runs generated code: privileges, files, system calls, resources.

All of it works without privileges and holds for root too. Nothing fails in silence: what cannot be given up is an
OSError.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable

from eval.sandbox.landlock import restrict_files
from eval.sandbox.seccomp import filter_steps, restrict_calls

_PR_SET_PDEATHSIG, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 23, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
CPU_SECONDS = 150  # EvalPlus itself gives a part of a sample's tests 62 seconds of wall time


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Has the kernel kill this process when the thread that started it ends (Linux alone has this)."""
    if sys.platform == "linux":
        libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def give_up_files(readable: Iterable[str]) -> None:
    """Drops all capabilities, and all of the file system but reading beneath `readable`.

    Raises:
        OSError: not Linux, or a kernel without Landlock; the capabilities are gone all the same.
    """
    if sys.platform != "linux":
        raise OSError(f"Landlock is Linux's; this is {sys.platform}")
    library = libc()
    if library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel does not take no_new_privs")
    _drop_capabilities(library)
    restrict_files(library, readable)


def require_calls_known() -> None:
    """Raises OSError where `give_up_calls` has no list of system calls for this machine."""
    filter_steps(platform.machine(), os.getpid())


def give_up_calls() -> None:
    """Bounds the process's resources, then all system calls but those of `seccomp.py`.

    Raises:
        OSError: not Linux, or a machine or kernel that takes no filter; the bounds hold all the same.
    """
    for kind, bound in (
        ("CPU", CPU_SECONDS),
        ("FSIZE", 0),
        ("CORE", 0),
        ("NOFILE", 64),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("SIGPENDING", 64),
    ):
        if hasattr(resource, f"RLIMIT_{kind}"):
            number = getattr(resource, f"RLIMIT_{kind}")
            hard = resource.getrlimit(number)[1]
            value = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.setrlimit(number, (value, value))
    if sys.platform != "linux":
        raise OSError(f"seccomp is Linux's; this is {sys.platform}")
    restrict_calls(libc())


def _drop_capabilities(library: ctypes.CDLL) -> None:
    for number in range(64):
        if library.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) < 0:
            break
        library.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # refused where the process lacks CAP_SETPCAP: nothing to lose
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if library.capset(ctypes.c_char_p(header), ctypes.c_char_p(bytes(24))) != 0:
        raise OSError(ctypes.get_errno(), f"capabilities cannot be dropped: {os.strerror(ctypes.get_errno())}")
