"""Judges, interpreters and samples end with the run, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from eval.sandbox.child import ROOT
from tests.eval.sandbox.modes import MODES

RUN = """
from eval.judges.code import judge_code
from tests.eval.judges.problems import DOUBLE
endless = "import _signal\\n_signal.signal(14, _signal.SIG_IGN)\\ndef double(x):\\n    while True: pass\\n"
judge_code([DOUBLE], [[endless]])
"""


def judging(processes: list[psutil.Process]) -> bool:
    """Whether a sample runs: a process forked from an interpreter has its command and is its child."""
    try:
        templates = {found.pid for found in processes if _is_template(found)}
        busy = [found for found in processes if found.pid in templates and found.cpu_times().user > 0.05]
        return any(found.ppid() in templates for found in busy)
    except psutil.NoSuchProcess:  # one has ended meanwhile
        return False


def _is_template(process: psutil.Process) -> bool:
    command = process.cmdline()
    return command[:1] == [sys.executable] and "eval.sandbox.template" in command


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_end_of_the_run_is_the_end_of_all_it_started(mode, number, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "HARC_SANDBOX": mode, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    process, processes = psutil.Process(run.pid), []
    deadline = time.monotonic() + 60
    while not processes or not judging(processes):
        assert run.poll() is None and time.monotonic() < deadline, "the sample was not judged"
        processes = process.children(recursive=True)
    run.send_signal(number)
    run.wait(30)
    _, left = psutil.wait_procs(processes, timeout=30)
    assert left == []
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody; the tests run as an ordinary user already")
def test_attacks_fail_as_nobody_too(tmp_path_factory):
    """The same file of tests as user 65534, in a mount namespace where that user can reach Python and this tree."""
    base = tmp_path_factory.mktemp("nobody")
    base.chmod(0o777)
    keep = base / "keep"
    keep.mkdir()
    needed = [Path(place).resolve() for place in (sys.base_prefix, sys.prefix, ROOT)]
    script = ["set -e", "mount --make-rprivate /"]
    hidden = [path for path in needed if _blocked(path)]
    for number, path in enumerate(hidden):
        script += [f"mkdir {keep}/{number}", f"mount --bind {path} {keep}/{number}"]
    for blocked in sorted({_blocked(path) for path in hidden}):
        script.append(f"mount -t tmpfs -o mode=755 tmpfs {blocked}")
    for number, path in enumerate(hidden):
        script += [f"mkdir -p {path}", f"mount --bind {keep}/{number} {path}"]
    script += ["mount -t tmpfs -o mode=1777 tmpfs /var/tmp", f"cd {ROOT}", 'exec "$@"']
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    tests = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "--basetemp=/var/tmp/tests"]
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            "\n".join(script),
            "sh",
            *become,
            *tests,
            "tests/eval/sandbox/test_attacks.py",
        ],
        env={**os.environ, "HOME": "/var/tmp", "TMPDIR": "/var/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def _blocked(path: Path) -> Path | None:
    """The first folder on the way to `path` that others may not enter."""
    return next((place for place in reversed(path.parents) if not place.stat().st_mode & 0o001), None)
