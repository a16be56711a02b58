import inspect
import os
import signal

import pytest

from plait.align.rollout import AskSettings
from plait.align.verify import Job, Outcome, VerifierPool
from plait.grade.program import grade_program

VERIFIERS = """
import os, time
from plait.grade.score import Score

def hang(question, reference, answer):
    while True:
        time.sleep(1)

def die(question, reference, answer):
    os._exit(3)

def nan(question, reference, answer):
    return Score(float("nan"), "")

def wrong(question, reference, answer):
    return None
"""


@pytest.fixture(autouse=True)
def _odd_verifiers(tmp_path, monkeypatch):
    (tmp_path / "odd_verifiers.py").write_text(VERIFIERS)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_every_bad_verifier_costs_its_own_answer_and_no_other():
    good = Job("plait.grade.number:grade_number", "q", "7", "It is 7.")
    jobs = [good]
    for bad in ("die", "nan", "wrong", "hang"):
        jobs += [Job(f"odd_verifiers:{bad}", "q", "r", "a"), good]
    jobs.append(Job("plait.grade.number:grade_number", "q", "no number", "7"))
    with VerifierPool(num_workers=2, timeout_s=0.5) as pool:
        outcomes = pool.grade(jobs)
    assert outcomes[::2] == [Outcome(1.0, "correct")] * 5
    died, nan, wrong, hung, unread = (each.reason for each in outcomes[1::2])
    assert died == "the verifier's process died"
    assert nan == "the verifier's score is nan"
    assert wrong.startswith("the verifier raised AttributeError")
    assert hung == "the verifier did not answer in 0.5 s"
    assert unread.startswith("the verifier raised DataError: reference 'no number'")
    assert all(each.value is None for each in outcomes[1::2])


def test_no_worker_outlives_its_pool():
    with VerifierPool() as pool:
        pool.grade([Job("plait.grade.number:grade_number", "q", "7", "7")])
        process = pool._workers[0]._process.pid
        assert pool.grade([]) == []
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_worker_killed_between_two_answers_is_replaced_and_a_polite_signal_ignored():
    job = Job("plait.grade.number:grade_number", "q", "7", "7")
    with VerifierPool() as pool:
        pool.grade([job])
        process = pool._workers[0]._process
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
        assert pool.grade([job]) == [Outcome(1.0, "correct")]
        assert pool._workers[0]._process is process
        process.kill()
        process.join()
        assert pool.grade([job]) == [Outcome(1.0, "correct")]


def test_a_program_that_never_ends_is_wrong_before_its_verifier_is_given_up():
    limits = inspect.signature(grade_program).parameters["limits"].default
    assert limits.wall_s < AskSettings().verify_timeout_s
