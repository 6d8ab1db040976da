"""A real SLURM on this machine alone, in a private folder: munged, slurmctld and slurmd, for as long as a test wants.

Needs Debian's slurm-wlm and munge (`apt-get install slurm-wlm munge`) and root, as slurmd does. No cgroups: processes
are told apart by their group, memory is counted and not enforced.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
_PATIENCE = 60  # seconds until daemons that do not come up are an error

CONF = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def reason() -> str | None:
    """Why SLURM cannot be started here; None if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "slurmd must be started as root"


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """SLURM runs meanwhile, and this process's environment leads its commands there.

    folder: empty; gets its configuration, state and logs.
    """
    folder.chmod(0o755)
    conf = folder / "slurm.conf"
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    controller, daemon = _free_ports(2)
    text = CONF.format(
        host=socket.gethostname(), controller=controller, daemon=daemon, user=getpass.getuser(), folder=folder,
        cores=psutil.cpu_count(), memory=int(psutil.virtual_memory().total / 2**20 * 0.95),
    )  # fmt: skip
    conf.write_text(text)
    before = os.environ.get("SLURM_CONF"), os.environ["PATH"]
    os.environ.update(SLURM_CONF=str(conf), PATH=_path())
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D"],
    ]
    running: list[subprocess.Popen] = []
    try:
        for command in commands:
            output = (folder / f"{command[0]}.output").open("w")
            running.append(subprocess.Popen(command, stdout=output, stderr=output))
            if command[0] == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), running, folder)
        _wait(lambda: "idle" in _said("sinfo", "-h", "-o", "%t"), running, folder)
        yield
    finally:
        if len(running) == len(commands):
            _said("scancel", "-u", getpass.getuser())
        for one in reversed(running):
            one.terminate()
        for one in running:
            one.wait(_PATIENCE)
        os.environ["PATH"] = before[1]
        if before[0] is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before[0]


def jobs() -> dict[str, dict[str, str]]:
    """Name -> what SLURM knows of a job, as `scontrol show job` writes it."""
    found = {}
    for line in _said("scontrol", "-o", "show", "job").splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found[fields["JobName"]] = fields
    return found


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _wait(ready, running: list[subprocess.Popen], folder: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while not ready():
        if any(one.poll() is not None for one in running) or time.monotonic() > until:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.[lo]*")))
            raise RuntimeError(f"SLURM does not come up:\n{logs}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
