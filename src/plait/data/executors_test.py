"""The executors: a real kill, Slurm by a stand-in for its commands, Ray itself."""

import os
import re
import shutil
import signal
import sys

import pytest
from datatrove.pipeline.base import PipelineStep

from plait.core.errors import CapacityError, PlaitError
from plait.data.curate import run
from plait.data.curate_settings import SlurmSettings
from plait.data.curate_test import crawl, product, settings
from plait.data.executors import LocalTasks, RayTasks, SlurmJobs, worker_pool

# Keeps the script, and runs its tasks one after the other if told to.
SBATCH = """#!/bin/bash
for argument; do script=$argument; done
cp "$script" "{folder}/script.sh"
tasks=$(grep -oP '(?<=--array=0-)\\d+' "$script")
if [ -n "{works}" ]; then
    for task in $(seq 0 $tasks); do
        SLURM_JOB_ID=7 SLURM_NODELIST=here SLURM_ARRAY_TASK_ID=$task bash "$script" >&2 || exit 1
    done
fi
echo Submitted batch job 7
"""
SRUN = """#!/bin/bash
while [ "$1" != launch_pickled_pipeline ]; do shift; done
shift
exec {python} -m datatrove.tools.launch_pickled_pipeline "$@"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put commands of Slurm's names on the path."""

    def put(works):
        folder = tmp_path / "slurm"
        folder.mkdir()
        fields = {"folder": folder, "works": works or "", "python": sys.executable}
        texts = {
            "sbatch": SBATCH,
            "srun": SRUN,
            "squeue": "#!/bin/bash\nexit 1\n",
            "scontrol": "#!/bin/bash\necho here\n",
        }
        for name, text in texts.items():
            for field, value in fields.items():
                text = text.replace(f"{{{field}}}", str(value))
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return folder / "script.sh"

    return put


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Curate a crawl in this process; returns the folder of pages and what was made of them."""
    pages, out = tmp_path_factory.mktemp("crawl"), tmp_path_factory.mktemp("local")
    crawl(pages)
    run(settings(pages), {}, out)
    return pages, product(out)


def same(ours, theirs):
    """Say whether two runs gave the same documents (what a funnel says of settings may differ)."""
    ours.pop("funnel.json"), theirs.pop("funnel.json")
    return ours == theirs


class Deadly(PipelineStep):
    """Notes each task that it ran; the third kills its process, once."""

    name = "deadly"

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def run(self, data=None, rank=0, world_size=1):
        if rank == 2 and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / "ran").open("a") as file:
            file.write(f"{rank}\n")


def test_a_killed_worker_stops_the_pass_and_the_next_run_goes_on(tmp_path):
    def run_pass():
        with worker_pool(2) as pool:
            LocalTasks(tmp_path / "logs", pool).run("clean", [Deadly(tmp_path)], 6)

    with pytest.raises(CapacityError, match=r"clean: a worker process died.*goes on from here"):
        run_pass()
    finished = len((tmp_path / "ran").read_text().split())
    assert finished < 6
    run_pass()
    assert sorted((tmp_path / "ran").read_text().split()) == sorted("012345")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_slurm_script_says_what_the_settings_say(slurm, tmp_path):
    script = slurm(works=False)
    wanted = SlurmSettings(partition="night", time="01:30:00", cpus_per_task=3, mem_per_cpu_gb=5)
    jobs = SlurmJobs(tmp_path / "logs", wanted, workers=4)
    with pytest.raises(CapacityError, match=r"clean: Slurm job 7 ended with 9 of 9 tasks unfin"):
        jobs.run("clean", [], 9)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert directives >= {
        *("partition=night", "time=01:30:00", "cpus-per-task=3", "mem-per-cpu=5G"),
        *("array=0-8%4", "job-name=plait-clean"),
    }
    assert any(line.startswith("srun") and "executor.pik" in line for line in lines)
    assert any(line.startswith("export PATH=") for line in lines)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_tasks_put_to_slurm_give_the_same_documents(slurm, local, tmp_path):
    slurm(works=True)
    pages, theirs = local
    table = {"partition": "night", "poll_s": 0.1}
    run(settings(pages, executor="slurm", slurm=table), {}, tmp_path / "out")
    assert same(product(tmp_path / "out"), dict(theirs))


# datatrove waits for ever where one of Ray's own warnings is an error.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_tasks_on_ray_give_the_same_documents(local, tmp_path, refusals):
    ray = pytest.importorskip("ray")
    pages, theirs = local
    try:
        run(settings(pages, executor="ray", workers=2), {}, tmp_path / "out")
    finally:
        ray.shutdown()
    assert same(product(tmp_path / "out"), dict(theirs))
    # Ray asks each cloud's own service whether the machine is one of its own.
    clouds = r" look up (169\.254\.169\.254|metadata\.google\.internal): "
    assert all(re.search(clouds, line) for line in refusals())


def test_without_ray_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PlaitError, match=r"pip install 'plait\[ray\]'"):
        RayTasks(tmp_path, 1)
