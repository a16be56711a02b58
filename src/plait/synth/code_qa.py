"""Code questions and answers: a question prompted by a snippet, a solution that must have syntax.

Source: the report (section 2.2.2): a model reads a snippet of real code and writes a question, the
solution is filtered by parsing it into a syntax tree and by heuristics, in 11 languages. Which
languages and heuristics is not published: our choice.
"""

import difflib
import re
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from pydantic import BaseModel

from plait.synth.chunks import chunks
from plait.synth.client import Unusable
from plait.synth.distinct import Distinct
from plait.synth.pieces import Pieces
from plait.synth.pipeline import Pipeline
from plait.synth.prompts import render
from plait.synth.rows import read_pages
from plait.synth.sample import Sample, question_and_answer
from plait.synth.settings import Page, PositiveInt, Share, Sources, SynthSettings

LANGUAGES = {
    "python": (".py",),
    "c": (".c", ".h"),
    "cpp": (".cpp", ".cc", ".cxx", ".hpp"),
    "csharp": (".cs",),
    "go": (".go",),
    "java": (".java",),
    "javascript": (".js", ".mjs"),
    "php": (".php",),
    "rust": (".rs",),
    "shell": (".sh",),
    "typescript": (".ts",),
}
_FENCE = re.compile(r"^```[ \t]*([\w+#-]*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_UNFINISHED = re.compile(
    r"(your code here|code goes here|rest of the code|implement(ation)? (this|here)|\bTODO\b|"
    r"raise NotImplementedError|^\s*(#|//)\s*\.\.\.\s*$)",
    re.IGNORECASE | re.MULTILINE,
)


class CodeQaSettings(SynthSettings):
    """Settings of the generator `code_qa`; documents are source files."""

    roles = ("writer", "solver")

    languages: tuple[str, ...] = tuple(LANGUAGES)
    """Languages of snippets, by their metadata `language` or the ending of their name."""
    snippet_tokens: PositiveInt = 1024
    min_snippet_lines: PositiveInt = 5
    min_solution_lines: PositiveInt = 3
    max_likeness: Share = 0.8
    """A solution that is more like the snippet than this has copied it."""
    max_question_tokens: PositiveInt = 1024
    max_answer_tokens: PositiveInt = 4096


class Snippet(NamedTuple):
    """A piece of a source file."""

    id: str
    code: str
    language: str


class Problem(NamedTuple):
    """A question that a snippet gave rise to."""

    id: str
    question: str
    snippet: Snippet


class Asked(BaseModel):
    """What the writer hands in."""

    question: str


async def generate(settings: CodeQaSettings, sources: Sources, pipeline: Pipeline) -> None:
    """Ask about snippets, then solve the questions that are new."""
    known = Distinct()
    problems = []
    pages = read_pages(sources, settings.files_read())
    snippets = Pieces(settings, sources, pipeline, pages, partial(_snippets, settings, sources))
    async for snippet, asked in pipeline.each(
        "questions", snippets, partial(_ask, settings, pipeline)
    ):
        if known.add(asked.question):
            problems.append(Problem(snippet.id, asked.question.strip(), snippet))
        else:
            pipeline.drop("questions", snippet, "duplicate_question")
    await pipeline.run("solutions", problems, partial(_solve, settings, sources, pipeline))


async def _ask(settings: CodeQaSettings, pipeline: Pipeline, snippet: Snippet) -> Asked:
    prompt = render("code_question", code=snippet.code, language=snippet.language)
    asked = await pipeline.roles["writer"].fill(
        prompt, Asked, max_tokens=settings.max_question_tokens
    )
    if len(asked.question.split()) < 5:
        raise Unusable("no_question", asked.question[:40])
    return asked


async def _solve(
    settings: CodeQaSettings, sources: Sources, pipeline: Pipeline, problem: Problem
) -> list[Sample]:
    language = problem.snippet.language
    prompt = render("code_answer", question=problem.question, language=language)

    def check(text: str) -> str:
        check_solution(settings, sources, problem.snippet, text)
        return text

    answer = await pipeline.roles["solver"].write(
        prompt, max_tokens=settings.max_answer_tokens, check=check
    )
    metadata = {"language": language}
    return [question_and_answer(problem.id, problem.question, answer, None, metadata)]


def check_solution(
    settings: CodeQaSettings, sources: Sources, snippet: Snippet, answer: str
) -> None:
    """Check that an answer holds a whole solution with syntax that is not the snippet again.

    Raises: Unusable if not.
    """
    blocks = [code for _, code in _FENCE.findall(answer)]
    code = "\n".join(blocks)
    if sum(bool(line.strip()) for line in code.splitlines()) < settings.min_solution_lines:
        raise Unusable("no_code")
    if _UNFINISHED.search(code):
        raise Unusable("unfinished_code")
    if any(sources.parses(snippet.language, block) is False for block in blocks):
        raise Unusable("does_not_parse")
    lines = difflib.SequenceMatcher(None, _lines(code), _lines(snippet.code), autojunk=False)
    if lines.ratio() > settings.max_likeness:
        raise Unusable("copied_snippet")


def language_of(name: str, metadata: dict) -> str | None:
    """Return the language of a source file by its metadata, else by its name."""
    named = str(metadata.get("language", "")).lower().replace("c++", "cpp").replace("c#", "csharp")
    if named in LANGUAGES:
        return named
    name = str(metadata.get("url") or name).lower()
    return next((lang for lang, ends in LANGUAGES.items() if name.endswith(ends)), None)


def _lines(code: str) -> list[str]:
    return [line.strip() for line in code.splitlines() if line.strip()]


def _snippets(settings: CodeQaSettings, sources: Sources, page: Page) -> Iterator[Snippet | str]:
    language = language_of(page.id, page.metadata)
    if language is None or language not in settings.languages:
        yield "other_language"
        return
    pieces = chunks(page.text, settings.snippet_tokens, sources.num_tokens)
    for number, piece in enumerate(pieces):
        if len(_lines(piece)) < settings.min_snippet_lines:
            yield "short_snippet"
        else:
            yield Snippet(f"{page.id}#{number}", piece, language)
