"""Claims: of all processes that want to write one folder, on any machine that sees it, one at a time does.

`<claims>/<name>/` holds numbered folders, each an owner's claim: who it is (owner.json), a count that it raises while
it works (beat), and `ended` once it is done. The highest number is the claim that holds. A claim is made by a rename to
the next number, which fails where that is taken: atomic on local and network file systems alike, without any file lock.
The next number is open once the owner has ended or is dead: on this machine if its process is gone, elsewhere if its
count stands still for `Pace.stale` seconds of the onlooker's clock; clocks of two machines are never compared.

Who was taken for dead and is not (a machine that slept) finds a higher number than its own: see `Claim.held`. The
highest is never removed, so that a number is never given twice.
"""

import errno
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from harc.files import replace_file, write_synced
from pipelines.typed import from_json

log = logging.getLogger(__name__)

OWNER, BEAT, ENDED = "owner.json", "beat", "ended"


@dataclass(frozen=True)
class Pace:
    """How often claims are renewed and looked at, seconds."""

    beat: float = 10.0
    """Between two beats of an owner."""

    stale: float = 180.0
    """Without a beat, after which an owner on another machine is dead."""

    look: float = 0.5
    """Between two looks of one who waits."""


PACE = Pace()


@dataclass(frozen=True)
class Owner:
    """A process that holds a claim."""

    host: str
    """The machine, as far as processes see each other's numbers: name, boot, namespace of process numbers."""

    pid: int
    """Process number."""

    started: str
    """When the process started, in the system's own units: a number that was given again does not match."""

    token: str
    """Random; tells its claims apart."""

    @property
    def words(self) -> str:
        """In words: `process 12 of node3`."""
        return f"process {self.pid} of {self.host.partition(' ')[0]}"


def this_host() -> str:
    """The machine that this process runs on, see `Owner.host`."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux alone says
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]  # noqa: PTH115
    return " ".join(parts)


def start_of(pid: int) -> str | None:
    """When a process of this machine started; None if there is none, or only its exit status is left."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    if Path("/proc/self/stat").exists():
        return None
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    return None


class Claim:
    """A claim that this process holds.

    Attributes: path (its numbered folder); token (random, its own).
    """

    def __init__(self, path: Path, token: str, pace: Pace):
        self.path, self.token = path, token
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(pace.beat,), daemon=True, name="claim")
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether it is still this process's: False once it was taken for dead and another one has claimed."""
        return self.path.is_dir() and _highest(self.path.parent) == int(self.path.name)

    def end(self) -> None:
        """Gives it up; the next one may claim at once."""
        self._stop.set()
        self._thread.join()
        with suppress(FileNotFoundError):  # another one has claimed meanwhile
            write_synced(self.path / ENDED, "")

    def _beat(self, seconds: float) -> None:
        count = 0
        while not self._stop.wait(seconds):
            count += 1
            try:
                replace_file(self.path / BEAT, str(count))
            except FileNotFoundError:
                return  # another one has claimed
            except OSError as error:
                log.warning("%s cannot be renewed: %s", self.path, error)


class Claims:
    """Claims in one folder, as one process makes them and sees those of others.

    clock: seconds, to tell how long a beat has stood still.
    """

    def __init__(self, folder: Path, pace: Pace = PACE, clock: Callable[[], float] = time.monotonic):
        self.folder, self.pace, self.clock = Path(folder), pace, clock
        self._seen: dict[Path, tuple[str, float]] = {}

    @contextmanager
    def claimed(self, name: str, wait: bool = True) -> Iterator[Claim | None]:
        """A claim while the context lasts; None, without `wait`, if another process holds it.

        Raises:
            OSError: the folder cannot be written.
        """
        claim = self.try_claim(name)
        if claim is None and wait:
            log.info("waiting: %s is at work on %s", self._owner_words(name), name)
            while (claim := self.try_claim(name)) is None:
                time.sleep(self.pace.look)
        try:
            yield claim
        finally:
            if claim is not None:
                claim.end()

    def try_claim(self, name: str) -> Claim | None:
        """A claim, if nobody who lives holds one."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        highest = _highest(folder)
        if highest and not self._open(folder / str(highest)):
            return None
        token = uuid.uuid4().hex
        beside, path = folder / f".{token}", folder / str(highest + 1)
        beside.mkdir()
        try:
            owner = Owner(this_host(), os.getpid(), start_of(os.getpid()) or "", token)
            write_synced(beside / OWNER, json.dumps(asdict(owner)))
            write_synced(beside / BEAT, "0")
            beside.rename(path)
        except OSError as error:  # it is taken; or only the reply of a network file system was lost: see whose it is
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        if not _is_of(path, token):
            return None
        if _highest(folder) != highest + 1:  # that number was over before this rename
            shutil.rmtree(path, ignore_errors=True)
            return None
        for other in folder.iterdir():
            if other != path:
                shutil.rmtree(other, ignore_errors=True)
        return Claim(path, token, self.pace)

    def _open(self, path: Path) -> bool:
        """Whether the owner of the highest claim has ended or is dead."""
        if (path / ENDED).exists():
            return True
        try:
            owner = from_json(Owner, json.loads((path / OWNER).read_text()), str(path))
            beat = (path / BEAT).read_text()
        except FileNotFoundError:  # a higher one was claimed meanwhile
            return False
        if owner.host == this_host():
            gone = start_of(owner.pid) != owner.started
        else:
            seen, since = self._seen.get(path, ("", 0.0))
            if seen != owner.token + beat:
                self._seen[path] = (owner.token + beat, self.clock())
                return False
            gone = self.clock() - since > self.pace.stale
        if gone:
            log.warning("%s held %s and is gone; taking over", owner.words, path.parent)
        return gone

    def _owner_words(self, name: str) -> str:
        folder = self.folder / name
        with suppress(FileNotFoundError):
            path = folder / str(_highest(folder)) / OWNER
            return from_json(Owner, json.loads(path.read_text()), str(path)).words
        return "another process"


def _highest(folder: Path) -> int:
    """The number of the claim that holds; 0 if there never was one."""
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)


def _is_of(path: Path, token: str) -> bool:
    with suppress(FileNotFoundError):
        return json.loads((path / OWNER).read_text())["token"] == token
    return False
