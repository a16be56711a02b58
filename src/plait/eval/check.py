"""What can be known of questions before an hour is spent on generating answers to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from plait.core.errors import DataError, RequestError
from plait.data.tokenizer import Tokenizer
from plait.eval.run import Question
from plait.grade.verifiers import Verifier
from plait.model.hf_config import read_spec

# An empty answer is enough for a grader to read the reference, and runs no program; mathematics
# reads it only to compare it with something.
_PROBES = {"maths": "0"}


def check_references(questions: Sequence[Question], verifiers: Mapping[str, Verifier]) -> None:
    """Refuse references that their verifiers cannot read.

    Raises: DataError naming question and reference.
    """
    for question in questions:
        verify = verifiers[question.verifier]
        try:
            verify(question.text, question.reference, _PROBES.get(question.verifier, ""))
        except DataError as error:
            raise DataError(f"question {question.id!r}: {error}") from None


def check_prompts(directory: Path, questions: Sequence[Question]) -> None:
    """Refuse prompts that leave no room for an answer in the context of a model, or are none.

    Raises: DataError naming the question; CheckpointError or DataError naming a file of the model
    that is missing or wrong.
    """
    spec, tokenizer = read_spec(directory), Tokenizer.from_directory(directory)
    for question in questions:
        try:
            num_tokens = max(
                len(
                    tokenizer.encode_conversation(
                        question.prompt, tools=question.tools, enable_thinking=thinking
                    )
                )
                for thinking in (True, False)
            )
        except RequestError as error:
            raise DataError(f"question {question.id!r}: {error}") from None
        if num_tokens >= spec.max_position_embeddings:
            raise DataError(
                f"question {question.id!r}: its prompt has {num_tokens:,} tokens, which leaves no "
                f"room for an answer in the context of {directory}, "
                f"{spec.max_position_embeddings:,} tokens"
            )
