"""Several processes that train one model: who this one is, and what they tell each other.

`torchrun`, `accelerate launch` and `lesionfast train --gpus` start the same command several times.
All processes do the same work and come to the same results; each reads its own share of every
batch. The first writes the run, the others write to a temporary folder that is thrown away.
"""

import atexit
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import distributed

from lesionfast.errors import LesionfastError
from lesionfast.files import temporary_folder
from lesionfast.run import Run

if TYPE_CHECKING:
    from lesionfast.data.augment import Share  # with fastai, which a launcher needs not load

OF_A_LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LONGEST = timedelta(hours=2)  # that one process waits for the others, which may decode images


class Process:
    """This process among the `size` that train together; its number is `rank`, from 0."""

    rank, size, writes_apart = 0, 1, False

    def share(self, of: str) -> "Share":
        """Return what it reads of "batches" or of "rows"."""
        from lesionfast.data.augment import Share

        return Share(self.rank, self.size, of)


process = Process()


def join_processes(device: str) -> None:
    """Join the other processes, if a launcher has started this one as one of several.

    Then the launcher's variables leave the environment. With them fastai's Learner would gather
    wherever it detaches a tensor, and what is started from here would take itself for one of them.
    Raises `LesionfastError` if there is no GPU for this process, and for precision or device that
    can't be shared.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) <= 1 or process.size > 1:
        return
    from lesionfast.data.loaders import pick_device

    kind = pick_device(device).type
    check_launch(kind, int(os.environ.get("LOCAL_RANK", 0)))
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=LONGEST)
    atexit.register(distributed.destroy_process_group)
    process.rank, process.size = distributed.get_rank(), distributed.get_world_size()
    for name in OF_A_LAUNCHER:
        os.environ.pop(name, None)


def check_launch(kind: str, local_rank: int) -> None:
    """Raise `LesionfastError` for a launch that can't work, or asks for what is not done."""
    if kind == "mps":
        raise LesionfastError(
            "several processes can't share Apple's GPU. Type --device cpu, or start one process."
        )
    if kind == "cuda" and local_rank >= (there := torch.cuda.device_count()):
        raise LesionfastError(
            f"process {local_rank + 1} of this machine has no GPU: PyTorch finds {there}. Start "
            f"{there} {'process' if there == 1 else 'processes'}."
        )
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked != "no":
        raise LesionfastError(
            f"accelerate asks for {asked}, but the precision is an option here. Tell accelerate no "
            "mixed precision, and type --precision bfloat16 or float16 after train."
        )


def gather(mine: Any) -> list[Any]:
    """Return what all processes have, in their order; whatever can be pickled."""
    if process.size == 1:
        return [mine]
    everyone: list[Any] = [None] * process.size
    distributed.all_gather_object(everyone, mine)
    return everyone


def as_first(mine: Any) -> Any:
    """Return what the first process has."""
    if process.size == 1:
        return mine
    told = [mine]
    distributed.broadcast_object_list(told)
    return told[0]


@contextmanager
def only_first_writes(root: str | Path) -> Iterator[Path]:
    """Give a folder for runs: `root` to the first process, a temporary one to the others."""
    if process.rank == 0 or process.writes_apart:
        yield Path(root)
        return
    with temporary_folder() as folder, writing_apart():
        yield folder


@contextmanager
def only_first_changes(run: Run) -> Iterator[Run]:
    """Give a run that is to be changed: itself to the first process, copies of it to the others."""
    if process.size == 1 or process.writes_apart:
        yield run
        return
    with only_first_writes(run.path.parent) as folder:
        if process.rank:
            shutil.copytree(run.path, folder / run.path.name)
        gather(None)  # only now may the first change it
        yield Run(folder / run.path.name)


@contextmanager
def writing_apart() -> Iterator[None]:
    """Note meanwhile that this process's runs are thrown away."""
    process.writes_apart = True
    try:
        yield
    finally:
        process.writes_apart = False


def launch(command: list[str], n: int) -> int:
    """Run a command of lesionfast in n processes here, by torchrun; return its exit code.

    Ctrl-C reaches all of them, and if one fails the others are ended. Raises `LesionfastError` if a
    signal has ended one.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes say more
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
    patience = {"shutdown_timeout": 600} if hasattr(LaunchConfig, "shutdown_timeout") else {}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id=uuid4().hex,
        **patience,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "lesionfast", *command)
    except ChildFailedError as error:
        _, first = error.get_first_failure()  # the launcher has ended the others
        codes = [first.exitcode, *(failure.exitcode for failure in error.failures.values())]
        killed = [-code for code in codes if code < 0 and code != -SIGTERM]
        if killed:  # the others may have failed in the same moment, as they had lost it
            raise LesionfastError(
                f"a process was ended by signal {killed[0]}, as the system does when memory is "
                "short. Continue after the last whole epoch with lesionfast train --resume RUN and "
                "a smaller --gpus, or start again with a smaller --batch-size or --size."
            ) from None
        return first.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0
