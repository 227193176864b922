"""A Slurm cluster of one node, for as long as a test needs it. Only root can start it."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=cred_expire=5
MaxArraySize=3
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SchedulerParameters=sched_interval=2
ReturnToService=2
KillWait=5
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Explain what keeps a cluster from being started here; return nothing where nothing does."""
    if os.geteuid() != 0:
        return "only root can start a Slurm cluster"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    return f"Slurm is not installed: {', '.join(missing)}" if missing else ""


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; yields the environment that its commands need."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname(), folder=folder, cores=os.cpu_count(),
            memory=int(psutil.virtual_memory().total / 2**20 * 0.9), controller_port=_port(), node_port=_port(),
        )
    )  # fmt: skip
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        if not any(process.info["name"] == "munged" for process in psutil.process_iter(["name"])):
            daemons.append(_munge())
        for name in ("slurmctld", "slurmd"):
            daemons.append(subprocess.Popen([name, "-D", "-f", str(configuration)], env=environment, cwd=folder))
        _wait_until_idle(environment)
        yield environment
    finally:
        for daemon in reversed(daemons):
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(daemon.pid).children(recursive=True):
                    child.kill()
            daemon.kill()
            daemon.wait()


def _munge() -> subprocess.Popen[bytes]:
    """Start the daemon by which Slurm's parts authenticate each other."""
    user = pwd.getpwnam("munge")
    for name in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(name).mkdir(parents=True, exist_ok=True)
        os.chown(name, user.pw_uid, user.pw_gid)
    return subprocess.Popen(["munged", "--foreground", "--force"], user="munge", group="munge", cwd="/")


def _wait_until_idle(environment: dict[str, str]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True, check=False)
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    raise AssertionError("the node did not get ready in a minute")


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
