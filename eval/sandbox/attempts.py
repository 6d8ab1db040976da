"""What the probe tries: its source is run in the sandbox, and everything here must be refused there.

`posix` and the C library's own functions are called, since what Python's modules offer may have been replaced.
"""

import contextlib
import ctypes
import mmap
import platform
import posix
import socket

# System calls that the C library has no function for.
_CALLS = {
    "x86_64": {"keyctl": 250, "perf_event_open": 298, "bpf": 321, "userfaultfd": 323, "process_vm_readv": 310},
    "aarch64": {"keyctl": 219, "perf_event_open": 241, "bpf": 280, "userfaultfd": 282, "process_vm_readv": 270},
}
_IO_URING_SETUP = 425


def attempt_all(folder, secret, port, outside):
    """By kind, what was tried and whether it succeeded.

    Args:
        folder: one outside, with a file `secret`.
        secret: that file's content.
        port: a TCP port that listens on 127.0.0.1.
        outside: the number of a process that is not the sandbox's.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    file = folder + "/secret"
    return {
        "reading": _tried(
            {
                "a file": lambda: secret.encode() in _read(file),
                "a folder": lambda: "secret" in posix.listdir(folder),
                "the password file": lambda: _read("/etc/passwd"),
                "the environment of its parent": lambda: _read(f"/proc/{posix.getppid()}/environ"),
                "the environment of the run": lambda: _read(f"/proc/{outside}/environ"),
            }
        ),
        "writing": _tried(
            {
                "a file": lambda: posix.open(file, posix.O_WRONLY) >= 0,
                "a new file": lambda: posix.open(folder + "/new", posix.O_WRONLY | posix.O_CREAT) >= 0,
                "a file in /tmp": lambda: posix.open("/tmp", posix.O_WRONLY | posix.O_TMPFILE) >= 0,
                "shared memory": lambda: posix.open("/dev/shm", posix.O_WRONLY | posix.O_TMPFILE) >= 0,
                "a folder": lambda: _done(posix.mkdir, folder + "/folder"),
                "rights": lambda: _done(posix.chmod, file, 0o777),
                "owner": lambda: _done(posix.chown, file, posix.getuid(), posix.getgid()),
                "times": lambda: _done(posix.utime, file),
                "attributes": lambda: _done(posix.setxattr, file, "user.harc", b"1"),
                "a link": lambda: _done(posix.symlink, file, folder + "/link"),
                "another name": lambda: _done(posix.rename, file, folder + "/other"),
                "removal": lambda: _done(posix.unlink, folder + "/other"),
            }
        ),
        "network": _tried(
            {
                "TCP": lambda: socket.create_connection(("127.0.0.1", port), timeout=2),
                "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)),
                "a local socket": lambda: socket.socket(socket.AF_UNIX),
                "netlink": lambda: socket.socket(16, socket.SOCK_RAW),
            }
        ),
        "processes": _tried(
            {
                "a process": _forks,
                "a program": lambda: _allowed(libc.execve(b"/nonexistent", None, None)),
                "a signal to its parent": lambda: _done(posix.kill, posix.getppid(), 0),
                "a signal to the run": lambda: _done(posix.kill, outside, 0),
                "a signal to all": lambda: _done(posix.kill, -1, 0),
                "limits of its parent": lambda: libc.prlimit(posix.getppid(), 7, None, bytes(16)) == 0,
                "memory of its parent": lambda: _call(libc, "process_vm_readv", posix.getppid(), bytes(16), 1),
                "tracing": lambda: libc.ptrace(0x4206, posix.getppid(), 0, 0) == 0,
                "priority": lambda: _done(posix.setpriority, 0, posix.getppid(), 1),
            }
        ),
        "kernel": _tried(
            {
                "namespaces": lambda: libc.unshare(0x10000000) == 0,
                "mounts": lambda: _allowed(libc.mount(b"none", b"/", b"harc-no-such-type", 0, None)),
                "another root": lambda: libc.chroot(b"/") == 0,
                "files in memory": lambda: libc.memfd_create(b"harc", 0) >= 0,
                "System V memory": lambda: libc.shmget(0, mmap.PAGESIZE, 0o1600) >= 0,
                "System V queues": lambda: libc.msgget(0, 0o1600) >= 0,
                "keys": lambda: _call(libc, "keyctl", 0, -3, 0),
                "counters": lambda: _call(libc, "perf_event_open", bytes(128), 0, -1),
                "BPF": lambda: _call(libc, "bpf", 0, bytes(128), 128),
                "page faults": lambda: _call(libc, "userfaultfd", 1, 0, 0),
                "io_uring": lambda: libc.syscall(_IO_URING_SETUP, 1, bytes(120)) >= 0,
            }
        ),
    }


def _tried(attempts):
    outcomes = {}
    for name, attempt in attempts.items():
        outcomes[name] = False
        with contextlib.suppress(OSError, KeyError, AttributeError):
            outcomes[name] = bool(attempt())
    return outcomes


def _done(function, *arguments):
    function(*arguments)
    return True


def _read(path):
    descriptor = posix.open(path, posix.O_RDONLY)
    try:
        return posix.read(descriptor, 4096)
    finally:
        posix.close(descriptor)


def _forks():
    process = posix.fork()
    if process == 0:
        posix._exit(0)
    posix.waitpid(process, 0)
    return True


def _allowed(result):
    """Whether a call that cannot succeed failed for want of what it names, and not of the right to make it."""
    return ctypes.get_errno() in (2, 19)


def _call(libc, name, *arguments):
    return libc.syscall(_CALLS[platform.machine()][name], *arguments) >= 0
