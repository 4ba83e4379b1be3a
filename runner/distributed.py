"""The processes of one run: who this one is, and how they stay together.

A launcher starts one process per GPU and gives each RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as srun
with a little help and torchrun do. Without them a run is one process. The process with rank 0 is the main one: it alone
holds the run's directory and writes to it.

Whatever one process does that others take part in, all of them do, in the same order; a process that leaves in any
other way ends all (`together`).
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lorsa.runner.errors import UserError
from lorsa.runner.stop import EXIT_STOPPED, StopRequested

if TYPE_CHECKING:
    import torch

    from lorsa.runner.schema import JobConfig

T = TypeVar("T")

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A model of 13 billion parameters is read by one process while the others wait.
TIMEOUT = timedelta(minutes=30)
FAILED, FAILURES, HEARD = "lorsa/failed", "lorsa/failures", "lorsa/heard"
# How a message begins that is no failure: a process was told to stop outside the training.
STOPPED = "stopped by "
# Seconds that a process has to come out of a collective call after another one failed.
GRACE = 20


def rank() -> int:
    """Return which of the run's processes this is; 0 where there is one."""
    return int(os.environ.get("RANK") or 0)


def world_size() -> int:
    """Return how many processes the run has."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_main() -> bool:
    """Say whether this is the process that writes the results."""
    return rank() == 0


def processes(cfg: JobConfig) -> int:
    """Return how many processes a run has: as many as were started, or where it is not begun, as it asks for."""
    return world_size() if os.environ.get("WORLD_SIZE") else cfg.resources.nodes * cfg.resources.tasks_per_node


def check_processes(cfg: JobConfig) -> None:
    """Refuse to begin a run with another number of processes than it asks for.

    Raises:
        UserError: says both numbers, and how to start them.
    """
    asked = cfg.resources.nodes * cfg.resources.tasks_per_node
    if asked not in (1, world_size()):
        raise UserError(
            f"resources asks for {asked} processes, and this is {world_size()}; start it with -m and "
            "hydra/launcher=local or slurm."
        )


def check_environment(engine: str) -> None:
    """Refuse variables of a launcher that do not fit the engine, or each other.

    Raises:
        UserError: says which, and what would be valid.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        value = os.environ.get(name)
        if value and not value.isdigit():
            raise UserError(f"{name}={value} is not a whole number; a launcher, such as torchrun, sets it.")
    if world_size() < 2:
        return
    if engine == "single":
        raise UserError(
            f"WORLD_SIZE={world_size()}: engine=single is one process; start it without a launcher, or use "
            "engine=ddp, zero1, zero2 or zero3."
        )
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE={world_size()}, but {', '.join(missing)} not set; start the run with a launcher that sets "
            f"{', '.join(VARIABLES)}, such as torchrun."
        )
    if rank() >= world_size():
        raise UserError(f"RANK={rank()} must be below WORLD_SIZE={world_size()}.")


class _Group:
    """The process group of this process, while there is one."""

    def __init__(self, control: torch.distributed.ProcessGroup, store: Any) -> None:
        self.control = control
        self.store = store
        self.failure: str | None = None  # what another process said when it left
        self.inside = False
        self.stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(store.clone(),), daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """End the watch; a thread that is in a call of the store must not outlive it."""
        self.stopped.set()
        self._watcher.join(timeout=5)

    def _watch(self, store: Any) -> None:
        """Wait for word of a failure elsewhere, and end this process if it cannot come out by itself."""
        while not self.stopped.wait(1.0):
            try:
                if not store.check([FAILED]):
                    continue
                self.failure = store.get(FAILED).decode()
                store.add(HEARD, 1)
            except Exception:  # the main process keeps the store
                self.failure = "the main process of the run has ended"
            break
        else:
            return
        # A collective call of NCCL does not return when a process of the group is gone.
        if not self.stopped.wait(GRACE) and self.inside:
            print(f"lorsa-run: process {rank()}: {self.failure}.", file=sys.stderr, flush=True)
            os._exit(EXIT_STOPPED if self.failure.startswith(STOPPED) else 1)

    def tell(self, sentence: str) -> None:
        """Say that this process leaves, and wait until the others have heard it, for a while."""
        with suppress(Exception):
            if self.store.add(FAILURES, 1) == 1:
                self.store.set(FAILED, sentence)
            deadline = time.monotonic() + GRACE / 2
            while self.store.add(HEARD, 0) < world_size() - 1 and time.monotonic() < deadline:
                time.sleep(0.1)


_group: _Group | None = None


def start(cfg: JobConfig) -> None:
    """Join the run's processes; nothing for one process that needs no process group. May be called again.

    Raises:
        UserError: the engine's libraries are missing, or the processes do not find each other.
    """
    global _group
    from lorsa.runner.zero import is_zero, require_deepspeed, start_deepspeed

    zero = is_zero(cfg.engine)
    if zero:
        require_deepspeed(cfg.engine)
    if _group is not None and _group.failure is not None:
        raise UserError(f"the processes of this job parted after an error ({_group.failure}); start the rest again.")
    if world_size() == 1 and not zero:
        return
    import torch

    for name, value in zip(VARIABLES, ("0", "0", "1", "127.0.0.1", str(_free_port())), strict=True):
        os.environ[name] = os.environ.get(name) or value
    cpu = cfg.engine.device == "cpu" or not torch.cuda.is_available()
    if not cpu:
        # Started with one GPU per task, each process sees its own as the only one, whatever its LOCAL_RANK.
        os.environ["LOCAL_RANK"] = str(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if _group is None:
        _group = _join("gloo" if cpu else "nccl")
        atexit.register(stop)
    if zero:
        start_deepspeed(cpu)


def _join(backend: str) -> _Group:
    import torch
    from torch import distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(minutes=10))))
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=TIMEOUT)
        # Messages between the processes go over the CPU: they do not wait for the GPU's queue.
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    except (dist.DistError, torch.distributed.DistNetworkError, RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"process {rank()} of {world_size()} did not find the others at {place} (MASTER_ADDR:MASTER_PORT): {reason}"
        ) from error
    return _Group(control, store)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop() -> None:
    """Leave the process group, if this process is in one; called at the end of the process."""
    global _group
    if _group is None:
        return
    from torch import distributed as dist

    _group.close()
    # A group that has lost a process may wait for it for ever.
    if dist.is_initialized() and _group.failure is None:
        dist.destroy_process_group()
    _group = None


def barrier() -> None:
    """Wait for all processes."""
    any_rank(False)


def any_rank(flag: bool) -> bool:
    """Say whether the flag is set in any process; cheap enough to ask after every update."""
    if _group is None or world_size() == 1:
        return flag
    import torch
    from torch import distributed as dist

    value = torch.tensor([flag], dtype=torch.uint8)
    dist.all_reduce(value, dist.ReduceOp.MAX, group=_group.control)
    return bool(value.item())


def gathered(value: T) -> list[T]:
    """Return every process' value, by rank; anything that can be pickled."""
    if _group is None or world_size() == 1:
        return [value]
    from torch import distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_group.control)
    return values


def broadcast(value: T | None, source: int = 0) -> T:
    """Return the value of one process in all; what the others give does not matter."""
    if _group is None or world_size() == 1:
        return value  # type: ignore[return-value]
    from torch import distributed as dist

    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=source, group=_group.control)
    result: T = values[0]
    return result


def from_main(function: Callable[[], T]) -> T:
    """Return what a function gives in the main process, which alone calls it; its refusal is everyone's.

    Raises:
        UserError: the function did.
    """
    if world_size() == 1:
        return function()
    outcome: tuple[T | None, UserError | None] = (None, None)
    if is_main():
        try:
            outcome = (function(), None)
        except UserError as error:
            outcome = (None, error)
    value, refusal = broadcast(outcome)
    if refusal is not None:
        refusal.agreed = True
        raise refusal
    return value  # type: ignore[return-value]


@contextmanager
def together(cfg: JobConfig) -> Iterator[None]:
    """Within, the processes of a run go together: one that leaves by an error takes the others with it.

    Raises:
        UserError: in a process that could not go on because another one had left; it says why that one did.
    """
    start(cfg)
    if _group is None or world_size() == 1:
        yield
        return
    group = _group
    group.inside = True
    try:
        yield
        barrier()
    except BaseException as error:
        if getattr(error, "agreed", False):
            raise
        if isinstance(error, StopRequested):
            group.tell(f"{STOPPED}{error}")
            raise
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        group.tell(f"process {rank()} on {socket.gethostname()} ended with {kind}{error}")
        first = group.failure
        if first is not None and first.startswith(STOPPED):
            raise StopRequested(first.removeprefix(STOPPED)) from error
        own = isinstance(error, UserError) or not isinstance(error, Exception)
        if own or first is None or first.startswith(f"process {rank()} "):
            raise
        raise UserError(first) from error
    finally:
        group.inside = False
