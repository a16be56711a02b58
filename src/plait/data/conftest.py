import pytest

from plait.data.steps import Task


@pytest.fixture
def through(tmp_path):
    """Take one document through steps and return the reason it was dropped for, or None."""

    def take(steps, document):
        reasons = []
        task = Task("c", lambda dropped, reason: reasons.append(reason), tmp_path, {})
        documents = iter([document])
        for step in steps:
            documents = step.run(documents, task)
        kept = list(documents)
        assert len(kept) + len(reasons) == 1
        return reasons[0] if reasons else None

    return take
