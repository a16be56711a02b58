"""Plain completions: prompts of every kind, echo, log-probabilities in the old form."""

import pytest
import torch

from plait.serve.conftest import MODEL


def test_prompts_are_texts_or_tokens_one_or_many(client, tiny):
    ids = tiny.engine.tokenizer.encode("hello")
    texts = [
        [choice.text for choice in client.completions.create(
            model=MODEL, prompt=prompt, temperature=0, max_tokens=6).choices]
        for prompt in ("hello", ids, ["hello", "hello"], [ids, ids])
    ]  # fmt: skip
    assert texts[0] == texts[1]
    assert texts[2] == texts[3] == texts[0] * 2


def test_echo_scores_the_prompt(client, tiny):
    ids = tiny.engine.tokenizer.encode("hello User Assistant")
    [choice] = client.completions.create(
        model=MODEL, prompt=ids, echo=True, logprobs=2, max_tokens=1, temperature=0
    ).choices
    scores = choice.logprobs
    assert choice.text.startswith("hello User Assistant")
    assert len(scores.tokens) == len(scores.token_logprobs) == len(ids) + 1
    assert scores.token_logprobs[0] is None

    with torch.inference_mode():
        logits = tiny.engine.model(torch.tensor([ids])).float().log_softmax(-1)[0]
    want = [float(logits[i, token]) for i, token in enumerate(ids[1:])]
    assert scores.token_logprobs[1:-1] == pytest.approx(want, abs=1e-4)
    best = max(scores.top_logprobs[-1], key=scores.top_logprobs[-1].get)
    assert scores.tokens[-1] == best
    [bare] = client.completions.create(
        model=MODEL, prompt=ids, echo=True, logprobs=1, max_tokens=0
    ).choices
    assert bare.text == "hello User Assistant"
    assert len(bare.logprobs.tokens) == len(ids)


def test_an_echo_without_an_answer_tells_of_no_token(client):
    fields = {"model": MODEL, "prompt": "hello so", "max_tokens": 0, "echo": True}
    whole = client.completions.create(**fields, extra_body={"return_token_ids": True})
    assert whole.usage.completion_tokens == 0
    assert whole.choices[0].token_ids == []
    *_, last, spent = client.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert spent.usage.completion_tokens == 0


def test_offsets_of_tokens_point_into_the_text_streamed_or_not(client):
    fields = {"model": MODEL, "prompt": "hé", "max_tokens": 40, "logprobs": 1, "seed": 3}
    [whole] = client.completions.create(**fields, temperature=1).choices
    scores = whole.logprobs
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        if not token.startswith(("bytes:", "<")):
            assert whole.text[offset:].startswith(token)
    for token, own, top in zip(
        scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True
    ):
        assert top[token] == own
    chunks = client.completions.create(**fields, temperature=1, stream=True)
    pieces = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [each for piece in pieces for each in piece.text_offset] == scores.text_offset
    [echo] = client.completions.create(**fields | {"max_tokens": 1}, echo=True).choices
    assert echo.logprobs.text_offset[:2] == [0, 1]


def test_streamed_token_ids_join_to_those_of_the_whole(client):
    fields = {"model": MODEL, "prompt": ["hé", "x"], "max_tokens": 9, "seed": 3}
    fields["extra_body"] = {"return_token_ids": True}
    whole = client.completions.create(**fields).choices
    found = [{"prompt_token_ids": [], "token_ids": []} for _ in whole]
    for chunk in client.completions.create(**fields, stream=True):
        [choice] = chunk.choices
        for name, ids in found[choice.index].items():
            ids += getattr(choice, name, None) or []
    assert found == [
        {"prompt_token_ids": each.prompt_token_ids, "token_ids": each.token_ids} for each in whole
    ]


@pytest.mark.parametrize("prompt", ["hello", "<SPECIAL_11>Assistant\n<think>\n"])
def test_plain_streams_join_to_the_whole_text(client, prompt):
    fields = {"model": MODEL, "prompt": prompt, "max_tokens": 30, "seed": 4, "stop": ["qz", "e"]}
    whole = client.completions.create(**fields).choices[0].text
    stream = client.completions.create(**fields, stream=True, echo=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == prompt + whole
