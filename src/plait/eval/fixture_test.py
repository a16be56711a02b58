"""A made-up run directory with everything the report can show; shared by the report's tests."""

import json
import math
import random

FAMILIES = ("count", "largest", "sum")
PHASES = [{"until": until, "weights": {"web": 1.0}} for until in (0.6, 0.9, 1.0)]
REASONS = ["language", "too_short", "exact_duplicate", "near_duplicate", "symbols", "repeats", "js"]


def write_stage(run, name, kind, settings=None, lines=(), finished=True, **metrics):
    folder = run / name
    folder.mkdir(parents=True)
    origin = {"fingerprint": "0", "stage": kind, "settings": settings or {}, "inputs": {}}
    (folder / "settings.json").write_text(json.dumps(origin))
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        manifest = {
            "metrics": metrics,
            "wall_s": 40.0 + 31 * len(name),
            "peak_memory_gib": 1.5,
            "peak_memory_of": "process" if kind == "curate" else "stage",
            "python": "3.11.9",
            "versions": {"plait": "0.1.0", "torch": "2.13.0"},
            "git_revision": "0123abcd",
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_run(
    run, family="sum", question="Let R=7, B=2.\nWhat is the last digit of the sum of R, B?"
):
    """Write a whole run; `family` and `question` are put where a user's text would be."""
    rng = random.Random(0)
    families = [*FAMILIES[:2], family]
    curate = write_stage(run, "01_curate", "curate", documents_in=3000.0)
    categories = {
        name: funnel(rng, size)
        for name, size in (("english", 900), ("maths", 640), ("multilingual", 1200), ("code", 260))
    }
    (curate / "funnel.json").write_text(json.dumps({"categories": categories}))
    write_stage(run, "02_tokenizer", "tokenizer", vocab_size=2048.0)
    write_stage(run, "03_blend", "blend", {"phases": PHASES})
    pretrain = training_lines(rng, 976, 4096, 7.6, 2.4, list(categories))
    write_stage(run, "04_pretrain", "pretrain", {"seed": 1}, pretrain, loss=2.4)
    write_stage(run, "05_sft", "sft", {"seed": 1}, training_lines(rng, 400, 8192, 3.0, 0.2, []))
    out = write_stage(
        run, "06_eval", "eval", {"budgets": [0, 4, 8, 16, 24, 32]}, num_questions=384.0
    )
    results, answers = evaluation(rng, families, question)
    before = [result for result in results if result["free_think_tags"]]
    panel = {name: {"tool_calls.exact": share} for name, share in (("05_sft", 0.25), ("06", 0.75))}
    scores = {"results": results, "uncut": before, "panel": panel}
    (out / "scores.json").write_text(json.dumps(scores))
    (out / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    return run


def funnel(rng, size):
    dropped = {reason: rng.randrange(size // 9) for reason in REASONS}
    return {
        "documents_in": size,
        "documents_kept": size - sum(dropped.values()),
        "characters": size * 2917,
        "dropped": dropped,
    }


def training_lines(rng, num_steps, tokens_per_step, start, end, categories):
    lines = []
    for step in range(num_steps + 1):
        level = end + (start - end) * math.exp(-6 * step / num_steps)
        if step:
            rate = 3e-3 * min(1.0, step / 25, (num_steps - step + 1) / (0.18 * num_steps))
            loss = level + rng.gauss(0, 0.12)
            line = {"step": step, "tokens": step * tokens_per_step, "loss": loss}
            lines.append(line | {"learning_rate": rate})
        if categories and (step % 200 == 0 or step == num_steps):
            scores = {
                f"eval.bits_per_byte.{name}": level * (1.05 + 0.09 * index)
                for index, name in enumerate(categories)
            }
            lines.append({"step": step} | scores)
    return lines


def evaluation(rng, families, question):
    results, answers = [], []
    settings = [("think", None), ("no_think", None)]
    settings += [(f"budget_{budget}", budget) for budget in (0, 4, 8, 16, 24, 32)]
    for free in (False, True):
        for name, budget in settings:
            share = 0.0 if name == "no_think" else 1.0 if budget is None else min(1, budget / 34)
            means = {
                family: mean(
                    0.1 + 0.88 * share
                    if index == 2
                    else 0.93 - 0.11 * index + (0.06 + 0.11 * index) * share,
                    128,
                )
                for index, family in enumerate(families)
            }
            overall = mean(sum(each["accuracy"] for each in means.values()) / 3, 384)
            setting = name + (".free" if free else "")
            results.append(
                {
                    "setting": setting,
                    "thinking": name != "no_think",
                    "budget": budget,
                    "free_think_tags": free,
                    **overall,
                    "families": means,
                    "well_formed": 1.0 if not free or share in (0, 1) else 0.93 + 0.06 * share,
                    "cut_off": 0.0,
                    "reasoning_tokens": 29.0 * share,
                    "total_tokens": 29.0 * share + 11,
                }
            )
            for index, family in enumerate(families):
                answers.append(answer(setting, family, question, index, share, rng))
    return results, answers


def mean(accuracy, number):
    error = math.sqrt(max(accuracy * (1 - accuracy), 0.0) / number)
    return {"accuracy": accuracy, "standard_error": error, "num_questions": number}


def answer(setting, family, question, index, share, rng):
    right = rng.random() < 0.4 + 0.5 * share
    return {
        "setting": setting,
        "id": f"q{index}",
        "family": family,
        "question": question,
        "reference": "9",
        "reasoning": "R=7, sum=7\nB=2, sum=9" if share else None,
        "content": "The answer is 9." if right else "The answer is 4.",
        "score": float(right),
        "reason": "correct" if right else "answered 4, expected 9",
        "well_formed": True,
        "num_reasoning_tokens": int(29 * share),
        "num_tokens": int(29 * share) + 11,
        "finish_reason": "stop",
    }
