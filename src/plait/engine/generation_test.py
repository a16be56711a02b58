import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.core.errors import ConfigError, RequestError
from plait.engine.fakes_test import END_OF_TEXT, END_OF_TURN, MARK, ByteTokenizer, vocabulary
from plait.engine.generation import Generation
from plait.engine.handle import SplitText
from plait.engine.request import SamplingParams
from plait.engine.vocabulary import Vocabulary

WORDS = vocabulary("think", ">\n\n", "</", "END", "hel", "lo")
TRACE, NO_TRACE, PLAIN = "Assistant\n<think>\n", "Assistant\n<think></think>", "once upon"


def start(prompt: str, words: Vocabulary = WORDS, max_context: int = 4096, **fields) -> Generation:
    ids = [MARK, *ByteTokenizer().encode_plain(prompt)]
    return Generation(ids, SamplingParams(**fields), words, max_context)


def ids_of(*texts: str) -> list[int]:
    table = WORDS.token_bytes
    return [table.index(text.encode()) for text in texts]


def say(generation: Generation, *texts: str) -> Generation:
    """Let the model say these tokens, as far as the generation takes them."""
    for token in ids_of(*texts):
        if generation.finish_reason is None:
            generation.accept(token, -1.0)
    return generation


def end(generation: Generation) -> Generation:
    generation.accept(END_OF_TURN, -1.0)
    return generation


def banned(generation: Generation) -> set[int]:
    """Return the tokens that may not follow now."""
    row = torch.zeros(len(WORDS.token_bytes))
    if edit := generation.edit():
        edit(row)
    return set(row.isinf().nonzero()[:, 0].tolist())


def test_trace_and_answer_are_split_and_stripped():
    generation = end(say(start(TRACE), *"so", "\n", "</", "think", ">\n\n", "hel", "lo", "\n"))
    completion = generation.completion()
    assert (completion.reasoning, completion.content) == ("so", "hello")
    assert completion.text == "so\n</think>\n\nhello\n"
    assert (completion.finish_reason, completion.num_closing_tags) == ("stop", 1)
    assert completion.well_formed
    assert completion.token_ids[-1] == END_OF_TURN
    assert completion.logprobs is None


def test_plain_prompt_gives_plain_content():
    completion = end(say(start(PLAIN), " ", *"a time", "\n")).completion()
    assert (completion.reasoning, completion.content) == (None, " a time\n")
    assert completion.well_formed


def test_the_output_cannot_end_inside_the_trace_unless_tags_are_free():
    served = say(start(TRACE), *"hm")
    assert {END_OF_TURN, END_OF_TEXT} <= banned(served)
    assert not banned(say(served, "</", "think", ">"))
    free = say(start(TRACE, free_think_tags=True), *"hm")
    assert not banned(free)
    completion = end(free).completion()
    assert (completion.reasoning, completion.content) == ("hm", "")
    assert (completion.finish_reason, completion.well_formed) == ("stop", False)


def test_without_a_trace_no_closing_tag_is_well_formed_and_one_is_not():
    assert end(say(start(NO_TRACE), "hel", "lo")).completion().well_formed
    free = say(start(NO_TRACE, free_think_tags=True), *"hm", "</", "think", ">")
    completion = end(free).completion()
    assert (completion.content, completion.well_formed) == ("hm</think>", False)


def test_either_end_token_stops_unless_ignored_and_own_stop_tokens_always():
    for token in (END_OF_TURN, END_OF_TEXT):
        generation = start(PLAIN)
        generation.accept(token, 0.0)
        assert generation.finish_reason == "stop"
    extra = ids_of("x")[0]
    generation = start(PLAIN, ignore_eos=True, stop_token_ids=(extra,))
    generation.accept(END_OF_TURN, 0.0)
    assert generation.finish_reason is None
    assert say(generation, "x").finish_reason == "stop"
    assert generation.completion().text == ""


def test_forced_close_is_marked_and_has_no_logprob():
    generation = say(start(TRACE, max_thinking_tokens=2, budget_rule="hard", logprobs=True), *"ab")
    assert generation.token_ids == ids_of("a", "b", "\n", "</", "think", ">\n\n")
    completion = end(say(generation, "lo")).completion()
    assert completion.forced == [False] * 2 + [True] * 4 + [False] * 2
    assert completion.logprobs == [-1.0] * 2 + [0.0] * 4 + [-1.0] * 2
    assert (completion.reasoning, completion.content) == ("ab", "lo")
    assert (completion.num_reasoning_tokens, completion.well_formed) == (2, True)


def test_pending_tokens_are_prompt_then_sampled_then_forced():
    generation = start(TRACE, max_thinking_tokens=0)
    assert generation.num_pending == len(generation.prompt_ids) + 3
    assert generation.next_tokens(4) == generation.prompt_ids[:4]
    rest = generation.next_tokens(generation.num_pending)
    assert rest == generation.prompt_ids[4:] + ids_of("</", "think", ">\n\n")
    say(generation, "a")
    assert (generation.num_pending, generation.next_tokens(1)) == (1, ids_of("a"))


def test_with_a_budget_max_tokens_leaves_room_to_close_the_trace():
    generation = say(start(TRACE, max_tokens=7, max_thinking_tokens=50), *"abcdefgh")
    completion = generation.completion()
    assert (len(completion.token_ids), completion.finish_reason) == (7, "length")
    room = 7 - WORDS.num_close_tokens
    assert (completion.reasoning, completion.well_formed) == ("abcdefgh"[:room], True)


def test_a_max_tokens_shorter_than_the_tag_cuts_it():
    completion = start(TRACE, max_tokens=2, max_thinking_tokens=2).completion()
    assert (len(completion.token_ids), completion.finish_reason) == (2, "length")
    assert (completion.num_closing_tags, completion.well_formed) == (0, False)


def test_reserve_keeps_room_for_the_answer():
    generation = start(TRACE, max_tokens=30, max_thinking_tokens=100, min_answer_tokens=10)
    say(generation, *"a" * 40)
    completion = generation.completion()
    assert completion.well_formed
    assert len(completion.content) >= 10
    assert len(completion.token_ids) == 30


@pytest.mark.parametrize(
    ("said", "content"),
    [
        (["hel", "lo", "END", "x"], "hello"),
        (["hel", "lo", *"END", "x"], "hello"),
        (["E", "N", "hel", *"ENEND"], "ENhelEN"),
        (["\n", "\n", "hel", "\n", "\n", "lo"], "hel"),
    ],
)
def test_stop_strings_end_the_answer_and_are_cut(said, content):
    generation = say(start(NO_TRACE, stop=("END", "\n\n")), *said)
    completion = generation.completion()
    assert (completion.content, completion.finish_reason) == (content, "stop")
    assert len(generation.token_ids) <= len(said)


def test_stop_strings_are_not_looked_for_in_the_trace():
    generation = say(start(TRACE, stop=("END",)), "END", "</", "think", ">\n\n", "hel")
    assert generation.finish_reason is None
    assert say(generation, "END").completion().content == "hel"


def test_forced_line_breaks_are_no_stop_string():
    generation = say(start(TRACE, stop=("\n\n",), max_thinking_tokens=0), "hel", "lo")
    assert generation.finish_reason is None


def test_stop_string_ends_plain_text_even_at_its_beginning():
    assert say(start(PLAIN, stop=("\n\n",)), "\n", "\n").completion().content == ""


CHUNKS = st.sampled_from(
    ["<", "/", "think", ">", "a", "\n", " ", "é", "€", "</think>", "E", "N", "D"]
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([TRACE, NO_TRACE, PLAIN]),
    st.lists(CHUNKS, max_size=25),
    st.lists(st.integers(0, 80)),
    st.sampled_from([None, 0, 1, 4]),
    st.booleans(),
    st.booleans(),
)
def test_streamed_pieces_join_to_the_completion(prompt, chunks, cuts, budget, free, ends):
    data = "".join(chunks).encode()
    edges = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
    pieces = [data[i:j] for i, j in itertools.pairwise(edges)]
    words = vocabulary(*dict.fromkeys(pieces))
    generation = start(
        prompt,
        words,
        max_thinking_tokens=budget,
        budget_grace_tokens=2,
        free_think_tags=free,
        stop=("END", "\n\na"),
        max_tokens=None if ends else len(pieces) + 3,
    )
    text, got = SplitText(generation), []
    for piece in pieces:
        token = words.token_bytes.index(piece)
        if generation.finish_reason is None and token not in banned(generation):
            generation.accept(token, 0.0)
            got.append(text.read())
    while generation.finish_reason is None:
        generation.accept(END_OF_TURN if ends else words.token_bytes.index(b"a"), 0.0)
        got.append(text.read())
    got.append(text.read())
    completion = generation.completion()
    assert "".join(reasoning for reasoning, _ in got) == (completion.reasoning or "")
    assert "".join(content for _, content in got) == completion.content
    if not free:
        assert completion.num_closing_tags <= (completion.reasoning is not None)
        assert "</think>" not in completion.content or prompt == PLAIN


def test_bad_prompts_are_refused_with_the_numbers():
    with pytest.raises(RequestError, match="prompt is empty"):
        Generation([], SamplingParams(), WORDS, 10)
    with pytest.raises(RequestError, match=r"token id 9999; ids run from 0 to \d+"):
        Generation([1, 9999], SamplingParams(), WORDS, 10)
    with pytest.raises(RequestError, match="token id -1"):
        Generation([-1], SamplingParams(), WORDS, 10)
    with pytest.raises(RequestError, match="has 10 tokens and the context holds 10"):
        Generation([5] * 10, SamplingParams(), WORDS, 10)
    with pytest.raises(RequestError, match=r"6 tokens .*max_tokens = 5 make 11.* holds 10.* to 4"):
        Generation([5] * 6, SamplingParams(max_tokens=5), WORDS, 10)
    assert Generation([5] * 6, SamplingParams(max_tokens=4), WORDS, 10).finish_reason is None


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2.0},
        {"seed": -1},
        {"stop": ("",)},
        {"max_thinking_tokens": -1},
        {"budget_grace_tokens": -1},
        {"min_answer_tokens": 5},
    ],
)
def test_bad_parameters_are_refused_by_name(fields):
    with pytest.raises(RequestError, match=next(iter(fields))):
        SamplingParams(**fields)


def test_a_tokenizer_that_cannot_write_the_tag_is_refused():
    class Lossy(ByteTokenizer):
        def encode_plain(self, text):
            return super().encode_plain(text.replace("<", ""))

    with pytest.raises(ConfigError, match="byte-level tokenizer without normalisation"):
        Vocabulary(Lossy())


def test_the_same_seed_gives_the_same_numbers_and_none_draws_one():
    first, second = start(PLAIN, seed=5), start(PLAIN, seed=5)
    assert [first.next_uniform() for _ in range(100)] == [second.next_uniform() for _ in range(100)]
    assert start(PLAIN).next_uniform() != start(PLAIN).next_uniform()


def test_greedy_and_seeded_requests_leave_torch_random_numbers_alone():
    before = torch.get_rng_state()
    start(PLAIN, temperature=0.0)
    start(PLAIN, seed=1).next_uniform()
    assert torch.equal(before, torch.get_rng_state())
