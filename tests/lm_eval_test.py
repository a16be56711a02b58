"""lm-eval as a client: its scores are what the engine's own model says they must be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.model.hf import save
from plait.serve.conftest import MODEL, serving, tiny_engine

pytestmark = pytest.mark.slow
CHOICES = ["hello User", "Assistant so", "zebra"]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{rest}
"""
CHOICE_REST = 'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"\n'
CHAT_REST = """\
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""


def best_choice(engine: Engine, question: str) -> int:
    """Return the choice whose tokens are the most probable, by a plain forward."""
    scores = []
    for choice in CHOICES:
        context = engine.tokenizer.encode(question)
        ids = engine.tokenizer.encode(f"{question} {choice}")
        assert ids[: len(context)] == context
        with torch.inference_mode():
            logprobs = engine.model(torch.tensor([ids])).float().log_softmax(-1)[0]
        places = range(len(context), len(ids))
        scores.append(sum(float(logprobs[i - 1, ids[i]]) for i in places))
    return scores.index(max(scores))


def write_task(directory: Path, name: str, kind: str, rest: str, rows: list[dict]) -> None:
    file = directory / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / f"{name}.yaml").write_text(TASK.format(name=name, file=file, kind=kind, rest=rest))


def run_lm_eval(directory: Path, task: str, *arguments: str) -> dict:
    command = [sys.executable, "-m", "lm_eval", "run", "--tasks", task, "--include_path",
               str(directory), "--output_path", str(directory / "out"), *arguments]  # fmt: skip
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
                   "HF_HOME": str(directory / "cache"), "OPENAI_API_KEY": "none"}  # fmt: skip
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    [file] = (directory / "out").rglob("results_*.json")
    return json.loads(file.read_text())["results"][task]


def test_log_likelihoods_through_local_completions(tmp_path):
    engine = tiny_engine()
    save(engine.model, tmp_path / "model")
    engine.tokenizer.save(tmp_path / "model")
    questions = ["hello", "so then", "the User", "Assistant", "why", "name"]
    rows = [
        {"question": question, "choices": CHOICES, "gold": best_choice(engine, question)}
        for question in questions
    ]
    write_task(tmp_path, "choose", "multiple_choice", CHOICE_REST, rows)
    with serving(engine) as server:
        options = (
            f"model={MODEL},base_url={server.url}/v1/completions,num_concurrent=1,"
            f"tokenizer_backend=huggingface,tokenizer={tmp_path / 'model'},max_length=512"
        )
        results = run_lm_eval(
            tmp_path, "choose", "--model", "local-completions", "--model_args", options
        )
    assert results["acc,none"] == 1.0


def test_answers_through_local_chat_completions(tmp_path):
    engine = tiny_engine()
    params = SamplingParams(max_tokens=12, temperature=0)
    questions = ["hello /no_think", "so then /no_think", "the User /no_think"]
    answers = engine.generate([[{"role": "user", "content": each}] for each in questions], params)
    rows = [
        {"question": question, "answer": answer.content}
        for question, answer in zip(questions, answers, strict=True)
    ]
    write_task(tmp_path, "say", "generate_until", CHAT_REST, rows)
    with serving(engine) as server:
        options = f"model={MODEL},base_url={server.url}/v1/chat/completions,num_concurrent=1"
        results = run_lm_eval(
            tmp_path, "say", "--model", "local-chat-completions", "--model_args", options,
            "--apply_chat_template",
        )  # fmt: skip
    assert results["exact_match,none"] == 1.0
