"""The sandbox proves itself, can be seen to fail, and generated code is refused where it does."""

import json
import logging
import os
import socket
import subprocess
import sys

import pytest

from eval.judges import judge
from eval.sandbox import permission
from eval.sandbox.child import ROOT, clean_environment
from eval.sandbox.isolation import Isolation, isolation
from eval.sandbox.probe import SECRET, Proof, prove
from eval.sandbox.process import SandboxError, Template
from eval.sandbox.seccomp import filter_steps
from tests.eval.judges.problems import DOUBLE, RIGHT
from tests.eval.sandbox.modes import MODES

KINDS = {"reading", "writing", "network", "processes", "kernel"}


@pytest.mark.parametrize("mode", MODES)
def test_every_attempt_fails_in_the_sandbox(mode, monkeypatch):
    monkeypatch.setenv("HARC_SANDBOX", mode)
    with Template(isolation()) as template:
        proof = prove(template)
    assert (dict(proof.fell), proof.trouble) == ({}, "")
    assert set(proof.held) == KINDS


def test_the_attempts_succeed_where_nothing_is_locked(tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    program = (
        "import json, sys\nfrom eval.sandbox.attempts import attempt_all\n"
        "print(json.dumps(attempt_all(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(tmp_path), SECRET, str(server.getsockname()[1]), str(os.getpid())]
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=clean_environment() | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
            capture_output=True,
            check=True,
        )
    results = json.loads(done.stdout)
    assert set(results) == KINDS
    assert all(results["reading"].values())
    assert {name for name, succeeded in results["writing"].items() if not succeeded} <= {"attributes"}
    assert results["network"]["TCP"]
    assert results["network"]["UDP"]
    assert {"a process", "a program", "a signal to the run"} <= {
        name for name, done in results["processes"].items() if done
    }
    assert results["kernel"]["files in memory"]


def unlocked(monkeypatch):
    """The proof of a machine whose kernel has neither Landlock nor a list of system calls here."""
    fell = {"processes": ["a process"], "writing": ["rights"]}
    monkeypatch.setattr(permission, "_proof", lambda: Proof({"network": ["TCP"]}, fell, "the kernel has no Landlock"))
    permission._announce.cache_clear()


def test_generated_code_is_refused_where_the_sandbox_does_not_hold(monkeypatch):
    unlocked(monkeypatch)
    with pytest.raises(SandboxError, match=r"processes \(a process\).*Landlock.*apt-get install bubblewrap.*allow_uns"):
        permission.require(allow_unsandboxed=False)


def test_what_holds_and_what_does_not_is_a_warning(monkeypatch, caplog):
    unlocked(monkeypatch)
    with caplog.at_level(logging.WARNING):
        permission.accept("limits", permission._proof(), allow_unsandboxed=True)
    (said,) = caplog.messages
    assert "refused: network" in said
    assert "not refused: processes (a process); writing (rights)" in said
    permission._announce.cache_clear()


@pytest.mark.slow
def test_an_interpreter_without_locks_fails_its_probe_and_judges_by_permission_only(monkeypatch, tmp_path):
    """The kernel is taken to lack Landlock and seccomp: a sitecustomize of the interpreter's own says so."""
    (tmp_path / "sitecustomize.py").write_text(
        "import eval.sandbox.landlock as landlock, eval.sandbox.seccomp as seccomp\n"
        "def lacking(*_):\n    raise OSError(38, 'the kernel lacks it')\n"
        "landlock.restrict_files = seccomp.restrict_calls = lacking\n"
    )
    environment = ["env", f"PYTHONPATH={ROOT}:{tmp_path}"]
    bare = Isolation("limits", tuple(environment))
    monkeypatch.setattr("eval.judges.evalplus.isolation", lambda: bare)
    with pytest.raises(SandboxError, match="everything"):
        judge("tiny_humaneval_plus", [{"problem": DOUBLE}], [RIGHT])
    assert judge("tiny_humaneval_plus", [{"problem": DOUBLE}], [RIGHT], allow_unsandboxed=True) == [True]
    with Template(bare, strict=False) as template:
        fell = prove(template).fell
    assert {"reading", "writing", "processes"} <= set(fell)


def test_an_unknown_mode_names_the_choices(monkeypatch):
    monkeypatch.setenv("HARC_SANDBOX", "firejail")
    with pytest.raises(ValueError, match="bubblewrap, unshare, limits"):
        isolation()


def test_a_machine_without_a_list_of_calls_is_an_error_and_not_an_open_door():
    with pytest.raises(OSError, match="no list of system calls for riscv64"):
        filter_steps("riscv64", 1)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_allows_what_is_listed_and_refuses_the_rest(machine):
    """The BPF program, run by a small interpreter of its own."""
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    read, openat, kill, clone = {"x86_64": (0, 257, 62, 56), "aarch64": (63, 56, 129, 220)}[machine]
    steps = filter_steps(machine, 4242)
    allow, refuse, unknown = 0x7FFF0000, 0x00050001, 0x00050026
    for (number, *arguments), expected in (
        ((read,), allow),
        ((openat, 0, 0, 0o2000000), allow),
        ((openat, 0, 0, 1), refuse),
        ((openat, 0, 0, 2), refuse),
        ((openat, 0, 0, 0o100), refuse),
        ((openat, 0, 0, 0o20200000), refuse),
        ((kill, 4242), allow),
        ((kill, 1), refuse),
        ((kill, 4242 + 2**32), refuse),
        ((clone, 0x3D0F00), allow),
        ((clone, 0x1200011), refuse),
        ((clone, 0x3D0F00 | 0x10000000), refuse),
        ((435,), unknown),
        ((9999,), unknown),
        ((400,), refuse),
        ((0x40000000 | read,), refuse),
    ):
        assert outcome(steps, architecture, number, arguments) == expected, (number, arguments)
    assert outcome(steps, architecture ^ 1, read, []) == refuse


def outcome(steps, architecture, number, arguments):
    words = {0: number, 4: architecture}
    for position in range(6):
        value = arguments[position] if position < len(arguments) else 0
        words[16 + 8 * position], words[20 + 8 * position] = value & 0xFFFFFFFF, value >> 32
    place = loaded = 0
    while True:
        code, if_true, if_false, value = steps[place]
        place += 1
        if code == 0x06:
            return value
        if code == 0x20:
            loaded = words[value]
        elif code == 0x54:
            loaded &= value
        else:
            true = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[code]
            place += if_true if true else if_false
