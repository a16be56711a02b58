"""Runs passes of datatrove steps: in processes of this machine, on a Slurm cluster, on Ray.

A pass is a list of steps and a number of tasks. All executors leave a mark for each finished task
in `<logs>/<pass>`, so what was finished under one is skipped under any other; all give the same
files.

`local` does not use datatrove's local executor, which starts a pool for every pass, waits for
ever if a worker is killed, and talks on the terminal: here logs go to `<logs>/<pass>/logs` only.
`slurm` puts an array job for every pass and waits for it; `ray` uses the cluster that Ray finds,
or this machine.
"""

import contextlib
import copy
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from plait.core.errors import CapacityError, PlaitError
from plait.core.progress import Progress
from plait.data.curate_settings import CurateSettings, SlurmSettings


class PassExecutor(Protocol):
    """Runs passes one after the other; finished tasks of an earlier run are not run again."""

    def run(self, name: str, steps: Sequence[PipelineStep], num_tasks: int) -> None:
        """Run all tasks of a pass.

        Raises: whatever a step raises; CapacityError if a task's process dies.
        """
        ...


@contextlib.contextmanager
def open_executor(settings: CurateSettings, logs: Path) -> Iterator[PassExecutor]:
    """Yield the executor that the settings name.

    Raises: PlaitError naming the extra to install for Ray.
    """
    if settings.executor == "slurm":
        assert settings.slurm is not None
        yield SlurmJobs(logs.resolve(), settings.slurm, settings.workers)
    elif settings.executor == "ray":
        yield RayTasks(logs.resolve(), settings.workers)
    else:
        with worker_pool(settings.workers) as pool:
            yield LocalTasks(logs, pool)


def counters(logs: Path, name: str) -> dict[str, int]:
    """Return the counters of a finished pass, summed over steps and tasks."""
    totals: dict[str, int] = {}
    for file in sorted((logs / name / "stats").glob("*.json")):
        for step in json.loads(file.read_text()):
            for counter, value in step["stats"].items():
                total = value["total"] if isinstance(value, dict) else value
                totals[counter] = totals.get(counter, 0) + int(total)
    return totals


class LocalTasks:
    """Tasks in a pool of processes, or in this one."""

    def __init__(self, logs: Path, pool: Executor | None) -> None:
        self.logs = logs
        self.pool = pool

    def run(self, name: str, steps: Sequence[PipelineStep], num_tasks: int) -> None:
        """Run all tasks of a pass; see `PassExecutor`."""
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
                    'cannot be imported (guard it: if __name__ == "__main__"); the same command '
                    "goes on from here, with fewer workers if need be"
                ) from None
            finally:
                for future in futures:
                    future.cancel()


class SlurmJobs:
    """Tasks as array jobs; one waits for the last before the next pass is put."""

    def __init__(self, logs: Path, settings: SlurmSettings, workers: int) -> None:
        self.logs = logs
        self.settings = settings
        self.workers = workers

    def run(self, name: str, steps: Sequence[PipelineStep], num_tasks: int) -> None:
        """Run all tasks of a pass; see `PassExecutor`."""
        job = _SlurmJob(
            list(steps),
            tasks=num_tasks,
            time=self.settings.time,
            partition=self.settings.partition,
            cpus_per_task=self.settings.cpus_per_task,
            mem_per_cpu_gb=self.settings.mem_per_cpu_gb,
            max_array_size=self.settings.max_array_size,
            workers=self.workers,
            job_name=f"plait-{name}",
            qos="",
            env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
            logging_dir=str(self.logs / name),
        )
        waiting = len(job.get_incomplete_ranks())
        with Progress(name, num_tasks, "tasks") as progress:
            progress.resume(num_tasks - waiting)
            if waiting:
                with _quiet():
                    job.run()
            while waiting:
                gone = not _is_queued(str(job.job_id))
                left = len(job.get_incomplete_ranks())
                progress.advance(waiting - left)
                waiting = left
                if waiting and gone:
                    raise CapacityError(
                        f"{name}: Slurm job {job.job_id} ended with {waiting} of {num_tasks} tasks "
                        f"unfinished; see {self.logs / name / 'slurm_logs'}; the same command goes "
                        "on from here"
                    )
                if waiting:
                    time.sleep(self.settings.poll_s)


class RayTasks:
    """Tasks on the Ray cluster that the environment names, or on this machine."""

    def __init__(self, logs: Path, workers: int) -> None:
        try:
            import ray
        except ImportError:
            raise PlaitError(
                "executor = \"ray\" needs Ray: install it with pip install 'plait[ray]'"
            ) from None
        self.logs = logs
        self.workers = workers
        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS", "local")
            cpus = workers if address == "local" else None
            ray.init(address, num_cpus=cpus, include_dashboard=False, log_to_driver=False)

    def run(self, name: str, steps: Sequence[PipelineStep], num_tasks: int) -> None:
        """Run all tasks of a pass; see `PassExecutor`."""
        from datatrove.executor.ray import RayPipelineExecutor

        tasks: Any = RayPipelineExecutor(
            list(steps), tasks=num_tasks, workers=self.workers, logging_dir=str(self.logs / name)
        )
        with Progress(name, num_tasks, "tasks") as progress, _quiet():
            tasks.run()
            left = len(tasks.get_incomplete_ranks(range(num_tasks)))
            progress.advance(num_tasks - left)
        if left:
            raise CapacityError(
                f"{name}: {left} of {num_tasks} Ray tasks did not finish; see "
                f"{self.logs / name / 'logs'}; the same command goes on from here"
            )


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


class _SlurmJob(SlurmPipelineExecutor):
    """datatrove's, without the extra job that merges statistics, which `counters` does."""

    def launch_merge_stats(self) -> None:
        pass


def _is_queued(job: str) -> bool:
    """Say whether Slurm still has a job to run or running."""
    done = subprocess.run(
        ["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and bool(done.stdout.strip())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep datatrove's log off the terminal."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            yield
        finally:
            # datatrove ends by pointing its log at the stderr it finds, here `nowhere`.
            logger.remove()


def _run_task(task: _Task, rank: int) -> None:
    with _quiet():
        task.run_rank(rank)
