"""IFEval's checks of words: keywords, letters, length, case and language.

Each check takes the response and the instruction's own arguments, under IFEval's names, and says
whether the response follows it. Keywords are plain text, not patterns; case does not matter.
"""

import re
from typing import Annotated, Literal

from pydantic import Field

from plait.core.errors import ConfigError
from plait.grade.instruction.sentences import split_sentences

Relation = Literal["less than", "at least"]
Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Texts = Annotated[list[Text], Field(min_length=1)]

_MISSING = "{what} needs the package {package}: pip install 'plait[align]'"


def existence(response: str, *, keywords: Texts) -> bool:
    """Every keyword occurs, inside a longer word too."""
    return all(_count(keyword, response) for keyword in keywords)


def frequency(response: str, *, keyword: Text, frequency: Count, relation: Relation) -> bool:
    """The keyword occurs less often than, or at least as often as, asked."""
    return _holds(_count(keyword.strip(), response), relation, frequency)


def forbidden_words(response: str, *, forbidden_words: Texts) -> bool:
    """None of the words occurs as a whole word."""
    return not any(
        re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(
    response: str,
    *,
    letter: Annotated[str, Field(min_length=1, max_length=1)],
    let_frequency: Count,
    let_relation: Relation,
) -> bool:
    """The character occurs, in either case, as often as asked."""
    return _holds(response.lower().count(letter.lower()), let_relation, let_frequency)


def number_words(response: str, *, num_words: Count, relation: Relation) -> bool:
    """So many runs of letters, digits and underscores."""
    return _holds(len(re.findall(r"\w+", response)), relation, num_words)


def number_sentences(response: str, *, num_sentences: Count, relation: Relation) -> bool:
    """So many sentences."""
    return _holds(len(split_sentences(response)), relation, num_sentences)


def capital_word_frequency(
    response: str, *, capital_frequency: Count, capital_relation: Relation
) -> bool:
    """So many words in capitals, as NLTK's tokenizer cuts them: DON'T counts as two."""
    try:
        from nltk.tokenize import NLTKWordTokenizer
    except ImportError:
        raise ConfigError(_MISSING.format(what="counting capital words", package="nltk")) from None
    capitals = sum(word.isupper() for word in NLTKWordTokenizer().tokenize(response))
    return _holds(capitals, capital_relation, capital_frequency)


def english_capital(response: str) -> bool:
    """English, without a lower-case letter."""
    return response.isupper() and response_language(response, language="en")


def english_lowercase(response: str) -> bool:
    """English, without a capital."""
    return response.islower() and response_language(response, language="en")


def response_language(response: str, *, language: Text) -> bool:
    """The response is in the language of an ISO 639-1 code; text in no language passes.

    langdetect samples; its seed is fixed, so the same text always gets the same verdict.
    """
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError:
        raise ConfigError(
            _MISSING.format(what="detecting a language", package="langdetect")
        ) from None
    DetectorFactory.seed = 0
    try:
        return detect(response) == language
    except LangDetectException:
        return True


def _count(keyword: str, response: str) -> int:
    return len(re.findall(re.escape(keyword), response, re.IGNORECASE))


def _holds(found: int, relation: Relation, asked: int) -> bool:
    return found < asked if relation == "less than" else found >= asked
