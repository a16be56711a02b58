"""Runs passes of datatrove steps on this machine: resumable, quiet, on one pool of workers.

A pass is a list of steps and a number of tasks; the same lists run under datatrove's Slurm and Ray
executors. Its local executor is not used because it starts a pool for every pass, waits for ever if
a worker is killed, and talks on the terminal: here logs go to `<logs>/<pass>/logs` only.
"""

import contextlib
import copy
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from plait.core.errors import CapacityError
from plait.core.progress import Progress


class Passes:
    """Runs passes one after the other; finished tasks of an earlier run are not run again."""

    def __init__(self, logs: Path, pool: Executor | None) -> None:
        self.logs = logs
        self.pool = pool

    def run(self, name: str, steps: Sequence[PipelineStep], num_tasks: int) -> None:
        """Run all tasks of a pass.

        Raises: whatever a step raises; CapacityError if a worker process dies.
        """
        task = _Task(steps, num_tasks, str(self.logs / name))
        waiting = task.get_incomplete_ranks(range(num_tasks))
        with Progress(name, num_tasks, "tasks") as progress:
            progress.resume(num_tasks - len(waiting))
            if self.pool is None:
                for rank in waiting:
                    _run_task(copy.deepcopy(task), rank)
                    progress.advance()
                return
            futures = [self.pool.submit(_run_task, task, rank) for rank in waiting]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.advance()
            except BrokenProcessPool:
                raise CapacityError(
                    f"{name}: a worker process died, for want of memory or because the main module "
                    'cannot be imported; use fewer workers, or guard it: if __name__ == "__main__"'
                ) from None
            finally:
                for future in futures:
                    future.cancel()

    def counters(self, name: str) -> dict[str, int]:
        """Return the counters of a finished pass, summed over steps and tasks."""
        totals: dict[str, int] = {}
        for file in sorted((self.logs / name / "stats").glob("*.json")):
            for step in json.loads(file.read_text()):
                for counter, value in step["stats"].items():
                    total = value["total"] if isinstance(value, dict) else value
                    totals[counter] = totals.get(counter, 0) + int(total)
        return totals


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[Executor | None]:
    """Yield a pool of fresh processes, or None for one worker: then all runs in this process."""
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when the main process is killed, which would leave it waiting for ever.

    It could also go on writing files that the resumed run already reads.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _Task(PipelineExecutor):
    """What datatrove needs to know to run one task of a pass."""

    def __init__(self, steps: Sequence[PipelineStep], num_tasks: int, logs: str) -> None:
        super().__init__(list(steps), logs)
        self.num_tasks = num_tasks

    def run(self) -> None:
        for rank in self.get_incomplete_ranks(range(self.num_tasks)):
            self.run_rank(rank)

    def run_rank(self, rank: int) -> None:
        # A local rank other than 0 keeps datatrove's log off the terminal.
        self._run_for_rank(rank, local_rank=1)

    @property
    def world_size(self) -> int:
        return self.num_tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="LOCAL",
        )


def _run_task(task: _Task, rank: int) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            task.run_rank(rank)
        finally:
            # datatrove ends by pointing its log at the stderr it finds, here `nowhere`.
            logger.remove()
