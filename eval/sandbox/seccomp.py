"""The system calls that generated code may make: an allow-list as a seccomp filter, built and loaded through ctypes.

Everything that is not listed is refused: EPERM, or ENOSYS for calls so new that the C library has a fallback. Files may
be opened for reading only, `clone` may start threads only, signals reach this process only.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_NEWER = 424  # from pidfd_send_signal on the numbers are the same everywhere
_X32 = 0x40000000

# Open flags that change something: write, read-write, create, truncate, append, an unnamed file.
_CHANGES = 0x3 | 0x40 | 0x200 | 0x400 | 0x400000
_THREAD = 0x10000 | 0x800 | 0x100  # CLONE_THREAD and what it needs
_NAMESPACES = 0x7E020000 | 0x2000  # CLONE_NEW…, CLONE_PTRACE
_OWN = "own process"

# A condition: (argument's position, kind, values). Kinds: "in", "none of" these bits, "all of" these bits.
Condition = tuple[int, str, tuple[int | str, ...]]
_CONDITIONS: dict[str, tuple[Condition, ...]] = {
    "open": ((1, "none of", (_CHANGES,)),),
    "openat": ((2, "none of", (_CHANGES,)),),
    "clone": ((0, "all of", (_THREAD,)), (0, "none of", (_NAMESPACES,))),
    "kill": ((0, "in", (_OWN,)),),
    "tgkill": ((0, "in", (_OWN,)),),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": ((1, "in", (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC: no owner to signal, lock, lease or larger pipe
    "fcntl": ((1, "in", (0, 1, 2, 3, 4, 1030)),),
    "prctl": ((0, "in", (15, 16, 0x53564D41)),),  # names of threads and of memory
    "prlimit64": ((0, "in", (0,)), (2, "in", (0,))),  # read one's own
    # asyncio wakes itself through a pair of connected sockets: streams, which take no address
    "socketpair": ((0, "in", (1,)), (1, "in", (1, 0x801, 0x80001, 0x80801))),
    "sendto": ((4, "in", (0,)),),
}

# By machine: the audit architecture, and the calls allowed with their numbers.
_MACHINES = {
    "x86_64": (
        0xC000003E,
        "read 0 write 1 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12 "
        "rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 futex 202 clock_gettime 228 gettimeofday 96 setitimer 38 "
        "getitimer 36 alarm 37 newfstatat 262 openat 257 open 2 ioctl 16 pread64 17 readv 19 writev 20 access 21 "
        "pipe 22 pipe2 293 select 23 sched_yield 24 mremap 25 mincore 27 madvise 28 dup 32 dup2 33 dup3 292 pause 34 "
        "nanosleep 35 getpid 39 sendto 44 recvfrom 45 shutdown 48 socketpair 53 getsockopt 55 clone 56 exit 60 "
        "kill 62 uname 63 fcntl 72 getcwd 79 readlink 89 getrlimit 97 getrusage 98 sysinfo 99 times 100 getuid 102 "
        "getgid 104 geteuid 107 getegid 108 getppid 110 rt_sigpending 127 rt_sigtimedwait 128 rt_sigsuspend 130 "
        "sigaltstack 131 statfs 137 fstatfs 138 prctl 157 gettid 186 time 201 sched_getaffinity 204 getdents64 217 "
        "set_tid_address 218 restart_syscall 219 clock_getres 229 clock_nanosleep 230 exit_group 231 epoll_wait 232 "
        "epoll_ctl 233 tgkill 234 readlinkat 267 faccessat 269 pselect6 270 ppoll 271 set_robust_list 273 "
        "epoll_pwait 281 eventfd2 290 epoll_create1 291 prlimit64 302 getrandom 318 membarrier 324 statx 332 rseq 334 "
        "close_range 436 faccessat2 439",
    ),
    "aarch64": (
        0xC00000B7,
        "read 63 write 64 close 57 fstat 80 lseek 62 mmap 222 mprotect 226 munmap 215 brk 214 rt_sigaction 134 "
        "rt_sigprocmask 135 rt_sigreturn 139 futex 98 clock_gettime 113 gettimeofday 169 setitimer 103 getitimer 102 "
        "newfstatat 79 openat 56 ioctl 29 pread64 67 readv 65 writev 66 pipe2 59 sched_yield 124 mremap 216 "
        "mincore 232 madvise 233 dup 23 dup3 24 nanosleep 101 getpid 172 sendto 206 recvfrom 207 shutdown 210 "
        "socketpair 199 getsockopt 209 clone 220 exit 93 kill 129 uname 160 fcntl 25 getcwd 17 getrusage 165 "
        "sysinfo 179 times 153 getuid 174 getgid 176 geteuid 175 getegid 177 getppid 173 rt_sigpending 136 "
        "rt_sigtimedwait 137 rt_sigsuspend 133 sigaltstack 132 statfs 43 fstatfs 44 prctl 167 gettid 178 "
        "sched_getaffinity 123 getdents64 61 set_tid_address 96 restart_syscall 128 clock_getres 114 "
        "clock_nanosleep 115 exit_group 94 epoll_ctl 21 tgkill 131 readlinkat 78 faccessat 48 pselect6 72 ppoll 73 "
        "set_robust_list 99 epoll_pwait 22 eventfd2 19 epoll_create1 20 prlimit64 261 getrandom 278 membarrier 283 "
        "statx 291 rseq 293 close_range 436 faccessat2 439",
    ),
}

Step = tuple[int, int, int, int]


def restrict_calls(libc: ctypes.CDLL) -> None:
    """Loads the filter into the calling process, for good; it needs PR_SET_NO_NEW_PRIVS before.

    Raises:
        OSError: a machine without a list here, or a kernel that takes no filter.
    """
    program = b"".join(struct.pack("=HBBI", *step) for step in filter_steps(platform.machine(), os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(header), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def filter_steps(machine: str, process: int) -> list[Step]:
    """The filter as BPF instructions (code, jump if true, jump if false, value).

    Args:
        machine: as `platform.machine()` names it.
        process: the only process that may be signalled.

    Raises:
        OSError: no list of calls for this machine.
    """
    if machine not in _MACHINES or struct.calcsize("P") != 8:
        raise OSError(_ENOSYS, f"no list of system calls for {machine}, {8 * struct.calcsize('P')} bits")
    architecture, listed = _MACHINES[machine]
    names = listed.split()
    steps: list[Step] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]
    for name, number in zip(names[::2], map(int, names[1::2]), strict=True):
        block = _block(_CONDITIONS.get(name, ()), process)
        steps += [(_EQUAL, 0, len(block), number), *block]
    return [
        *steps,
        (_AT_LEAST, 0, 1, _NEWER),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]


def _block(conditions: Sequence[Condition], process: int) -> list[Step]:
    """Allows when all conditions hold, refuses otherwise; a jump of -1 goes to the refusal at the block's end."""
    steps: list[Step] = []
    for position, kind, values in conditions:
        numbers = [process if value == _OWN else int(value) for value in values]
        low, high = 16 + 8 * position, 20 + 8 * position  # of a little-endian argument
        if kind == "in":
            steps += [(_LOAD, 0, 0, high), (_EQUAL, 0, -1, 0), (_LOAD, 0, 0, low)]
            for left, number in zip(range(len(numbers) - 1, -1, -1), numbers, strict=True):
                steps.append((_EQUAL, left, 0 if left else -1, number))
        elif kind == "none of":
            steps += [(_LOAD, 0, 0, low), (_ANY_BIT, -1, 0, numbers[0])]
        else:
            steps += [(_LOAD, 0, 0, low), (_AND, 0, 0, numbers[0]), (_EQUAL, 0, -1, numbers[0])]
    steps.append((_RETURN, 0, 0, _ALLOW))
    if not conditions:
        return steps
    end = len(steps)
    resolved = [
        (code, *(end - place - 1 if jump < 0 else jump for jump in jumps), value)
        for place, (code, *jumps, value) in enumerate(steps)
    ]
    return [*resolved, (_RETURN, 0, 0, _ERRNO | _EPERM)]  # type: ignore[list-item]
