"""What stands around the locked interpreter: bubblewrap, namespaces by `unshare`, or nothing but its own lockdown."""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eval.sandbox.child import ROOT

INSTALL = "install bubblewrap (`apt-get install bubblewrap`, `dnf install bubblewrap`, `conda install bubblewrap`)"
MODES = ("bubblewrap", "unshare", "limits")
_NAMESPACES = ["--net", "--pid", "--ipc", "--uts", "--mount-proc", "--kill-child", "--fork"]
_UNSHARE = (
    ["--user", "--map-current-user", *_NAMESPACES],
    _NAMESPACES,
    ["--user", "--map-current-user", "--net", "--ipc"],
)
# What the dynamic linker and the C library read, beside Python's own files.
_SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime",
    "/usr/share/zoneinfo", "/dev/null", "/dev/urandom",
)  # fmt: skip


@dataclass(frozen=True)
class Isolation:
    """How the locked interpreter is started.

    Attributes:
        mode: "bubblewrap", "unshare" or "limits".
        prefix: what stands before its command, but for bubblewrap's binds.
    """

    mode: str
    prefix: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """What stands before the interpreter's command."""
        return [*self.prefix, *_binds()] if self.mode == "bubblewrap" else list(self.prefix)


def isolation() -> Isolation:
    """The strongest isolation that works here, or the one that HARC_SANDBOX asks for.

    Raises:
        ValueError: HARC_SANDBOX is no mode, or names one that does not work here.
    """
    return _isolation(os.environ.get("HARC_SANDBOX", ""))


@functools.cache
def _isolation(wanted: str) -> Isolation:
    if wanted not in ("", *MODES):
        raise ValueError(f"HARC_SANDBOX={wanted}: choose among {', '.join(MODES)}")
    for found in _candidates():
        if wanted in ("", found.mode) and _works(found):
            return found
    raise ValueError(f"HARC_SANDBOX={wanted} does not work on this system; {INSTALL}, or choose another mode")


def _candidates() -> Iterator[Isolation]:
    yield Isolation(
        "bubblewrap",
        ("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--chdir", "/"),
    )
    for options in _UNSHARE:
        yield Isolation("unshare", ("unshare", *options))
    yield Isolation("limits")


def _works(found: Isolation) -> bool:
    if not found.prefix:
        return True
    if shutil.which(found.prefix[0]) is None:
        return False
    command = [*found.command(), sys.executable, "-I", "-S", "-c", ""]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _binds() -> list[str]:
    shown = [path for path in [*readable_paths(), str(ROOT / "eval")] if not path.startswith("/dev/")]
    binds = [part for path in shown for part in ("--ro-bind-try", path, path)]
    return ["--dev", "/dev", *binds, "--remount-ro", "/"]


@functools.cache
def readable_paths() -> list[str]:
    """What generated code may read: the interpreter, its libraries, those of the system; existing paths."""
    named = sysconfig.get_paths()
    found = [named[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
        found += [f"{prefix}/{part}" for part in ("lib", "lib64", "pyvenv.cfg")]
    found += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    for program in (sys.executable, getattr(sys, "_base_executable", sys.executable), os.path.realpath(sys.executable)):
        found.append(str(Path(program).parent))
    return list(dict.fromkeys(path for path in [*found, *_SYSTEM] if Path(path).exists()))
