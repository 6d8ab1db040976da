"""Hostile programs, in every mode that this machine has: each is judged wrong, and nothing outside changes."""

import os
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from eval.judges.code import judge_code
from eval.sandbox.isolation import isolation
from tests.eval.judges.problems import DOUBLE
from tests.eval.sandbox.attacks import ATTACKS, CORE, HARMLESS, RIGHT, WRONG
from tests.eval.sandbox.modes import MODES

SECRET = "the secret"


@dataclass
class Outcome:
    """What came of a run of programs: verdicts by name, and what they changed outside."""

    verdicts: dict[str, bool]
    changes: list[str] = field(default_factory=list)


def run(mode: str, programs: dict[str, str], folder: Path, monkeypatch) -> Outcome:
    victim = folder / "victim"
    victim.write_text(SECRET)
    (folder / "empty").mkdir()
    monkeypatch.setenv("HARC_SANDBOX", mode)
    monkeypatch.setenv("HARC_TEST_TOKEN", "secret")
    before, running = _outside(victim), psutil.Process().children(recursive=True)
    signalled: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: signalled.append(number))
    # Sockets that nothing connects to or sends to.
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        server.setblocking(False)
        datagrams.setblocking(False)
        known = {"{victim}": victim, "{folder}": folder, "{port}": port, "{run}": os.getpid()}
        codes = {name: _filled(code, known) for name, code in programs.items()}
        try:
            (verdicts,) = judge_code([DOUBLE], [list(codes.values())])
        finally:
            signal.signal(signal.SIGTERM, previous)
        changes = [f"a signal: {signalled}"] if signalled else []
        for name, receive in (("a connection", server.accept), ("a datagram", lambda: datagrams.recv(1))):
            try:
                receive()
                changes.append(name)
            except BlockingIOError:
                pass
    after = _outside(victim)
    changes += [f"{name}: {before[name]} became {after[name]}" for name in before if before[name] != after[name]]
    changes += [
        f"a process: {process}" for process in psutil.Process().children(recursive=True) if process not in running
    ]
    return Outcome(dict(zip(programs, verdicts, strict=True)), changes)


def _filled(code: str, known: dict) -> str:
    for name, value in known.items():
        code = code.replace(name, str(value))
    return code.replace("{{", "{").replace("}}", "}")


def _outside(victim: Path) -> dict[str, object]:
    """What attacks try to change."""
    status = victim.stat()
    return {
        "content": victim.read_text(),
        "status": (status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns),
        "attributes": os.listxattr(victim),
        "folder": sorted(path.name for path in victim.parent.iterdir()),
        "temporary files": sorted(path.name for path in Path("/tmp").glob("harc-attack*")),
        "shared memory": sorted(path.name for path in Path("/dev/shm").glob("harc*")),
        "System V memory": _own_segments(),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "host": socket.gethostname(),
    }


def _own_segments() -> set[str]:
    """System V segments that this user made; those of others come and go, of the same tests as another user too."""
    listed = Path("/proc/sysvipc/shm")
    if not listed.exists():
        return set()
    header, *rows = (line.split() for line in listed.read_text().splitlines())
    maker, identity = header.index("cuid"), header.index("shmid")
    return {row[identity] for row in rows if int(row[maker]) == os.geteuid()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """All programs in one mode, judged in one run when the first test of that mode asks."""
    done: dict[str, Outcome] = {}

    def outcome(mode: str) -> Outcome:
        if mode not in done:
            with pytest.MonkeyPatch.context() as monkeypatch:
                done[mode] = run(mode, {**ATTACKS, **HARMLESS}, tmp_path_factory.mktemp(mode), monkeypatch)
        return done[mode]

    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("mode", MODES)
def test_an_attack_is_judged_wrong(mode, name, outcomes):
    assert outcomes(mode).verdicts[name] is False


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_attacks_change_nothing_outside(mode, outcomes):
    assert outcomes(mode).changes == []


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("mode", MODES)
def test_a_harmless_program_is_judged_right_among_attacks(mode, name, outcomes):
    assert outcomes(mode).verdicts[name] is True


def test_one_attack_of_each_kind_is_judged_wrong_and_changes_nothing(tmp_path, monkeypatch):
    mode = isolation().mode
    programs = {**{name: ATTACKS[name] for name in CORE}, "wrong": WRONG, "right": RIGHT}
    outcome = run(mode, programs, tmp_path, monkeypatch)
    assert [name for name, right in outcome.verdicts.items() if right] == ["right"]
    assert outcome.changes == []
