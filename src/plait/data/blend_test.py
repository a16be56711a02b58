import json

import numpy as np
import pytest

from plait.core.errors import ConfigError, DataError
from plait.data import blend as blend_module
from plait.data.blend import Blend, BlendSettings, read_token_num_bytes, run
from plait.data.indexed import TokenShard
from plait.data.train_tokenizer import train_tokenizer

TEXTS = {
    "train": {"web": ["aé <SPECIAL_12> b</s>", "", "日本 text"] * 9, "maths": ["1+1=2 "] * 7},
    "validation": {"web": ["new text"], "maths": ["2+2=4"]},
}
PHASES = [{"until": 0.6, "weights": {"web": 3, "maths": 1}}, {"until": 1.0, "weights": {"web": 1}}]


@pytest.fixture
def inputs(tmp_path):
    for split, categories in TEXTS.items():
        directory = tmp_path / "curate" / "documents" / split
        directory.mkdir(parents=True)
        for category, texts in categories.items():
            lines = [json.dumps({"text": text, "id": str(i)}) for i, text in enumerate(texts)]
            (directory / f"{category}.jsonl").write_text("\n".join(lines))
    train_tokenizer(["text 1+1"] * 9, vocab_size=280).save(tmp_path / "tokenizer")
    return {"documents": tmp_path / "curate", "tokenizer": tmp_path / "tokenizer"}


def settings(phases=PHASES, **more):
    return BlendSettings.parse({"phases": phases, **more}, "recipe")


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_shards_hold_each_document_and_its_end(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(blend_module, "_BATCH_CHARACTERS", 20)
    monkeypatch.setattr(blend_module, "_CHUNK_TOKENS", 5)
    out = tmp_path / "out"
    metrics = run(settings(), inputs, out)
    tokenizer = blend_module.Tokenizer.from_directory(inputs["tokenizer"])
    table = read_token_num_bytes(out)
    blend = Blend.read(out)
    for split, categories in TEXTS.items():
        for category, texts in categories.items():
            texts = [text for text in texts if text]
            shard = TokenShard(out / split / category)
            found = [shard[i].tolist() for i in range(len(shard))]
            # Special tokens spelled in a page stay text: only the end of the document is special.
            assert all(ids[-1] == 2 and min(ids[:-1]) >= 16 for ids in found)
            assert [tokenizer.decode(ids[:-1]) for ids in found] == texts
            num_bytes = sum(len(text.encode()) for text in texts)
            assert table[shard.tokens].sum() == num_bytes
            size = getattr(blend, split)[category]
            assert size.model_dump() == {
                "documents": len(texts),
                "tokens": sum(map(len, found)),
                "bytes": num_bytes,
            }
            assert metrics[f"{split}_tokens.{category}"] == size.tokens
    assert metrics["train_tokens"] == sum(size.tokens for size in blend.train.values())
    assert blend.phases == settings().phases


def test_a_category_gathers_the_documents_of_every_folder(inputs, tmp_path):
    folder = tmp_path / "synth" / "documents" / "train"
    folder.mkdir(parents=True)
    (folder / "maths.jsonl").write_text('{"text": "3+3=6", "id": "new"}')
    run(settings(), inputs | {"documents.synth": tmp_path / "synth"}, tmp_path / "out")
    tokenizer = blend_module.Tokenizer.from_directory(inputs["tokenizer"])
    shard = TokenShard(tmp_path / "out" / "train" / "maths")
    texts = [tokenizer.decode(shard[i].tolist()[:-1]) for i in range(len(shard))]
    assert texts == [*TEXTS["train"]["maths"], "3+3=6"]


def test_an_interrupted_run_ends_in_the_same_files(inputs, tmp_path, monkeypatch):
    run(settings(), inputs, tmp_path / "whole")
    written = []
    original = blend_module._write_shard

    def die_at_the_second(prefix, *rest):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(prefix.name)
        original(prefix, *rest)

    out = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(blend_module, "_write_shard", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(settings(), inputs, out)
    with pytest.raises(DataError, match=r"blend\.json: not a finished blend"):
        Blend.read(out)

    with monkeypatch.context() as patch:
        patch.setattr(
            blend_module,
            "_write_shard",
            lambda prefix, *rest: (written.append(prefix.name), original(prefix, *rest)),
        )
        run(settings(), inputs, out)
    # What the first run finished was not made again.
    assert written == ["maths", "web", "maths", "web"]
    assert contents(out) == contents(tmp_path / "whole")


def test_optional_categories_may_be_missing(inputs, tmp_path, caplog):
    for split in TEXTS:
        (inputs["documents"] / "documents" / split / "maths.jsonl").unlink()
    with pytest.raises(ConfigError, match="'maths', which has no documents"):
        run(settings(), inputs, tmp_path / "strict")
    run(settings(optional=["maths"]), inputs, tmp_path / "out")
    assert "no documents of category maths" in caplog.text
    assert [phase.weights for phase in Blend.read(tmp_path / "out").phases] == [
        {"web": 3},
        {"web": 1},
    ]
    only_maths = [{"until": 0.5, "weights": {"maths": 1}}, {"until": 1.0, "weights": {"web": 1}}]
    with pytest.raises(ConfigError, match=r"until 0\.5 draws only from missing categories: maths"):
        run(settings(only_maths, optional=["maths"]), inputs, tmp_path / "strict")


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"until": 1.0, "weights": {"web": 1, "math": 1}}], "'math'.* did you mean 'maths'"),
        ([{"until": 1.0, "weights": {"web": 1}}], "'maths', which no phase gives a weight"),
        ([{"until": 0.9, "weights": {"web": 1}}], "the last at 1.0"),
        ([], "the last at 1.0"),
        ([{"until": 0.9, "weights": {"web": 1}}, PHASES[0], PHASES[1]], "rising shares"),
        ([{"until": 1.0, "weights": {"web": 0.0}}], "must be positive; wrong: web"),
        ([{"until": 1.0, "weights": {"web": float("nan")}}], "must be positive"),
        ([{"until": 1.0, "weights": {}}], "no weight"),
        ([{"till": 1.0, "weights": {"web": 1}}], "did you mean 'until'"),
    ],
)
def test_bad_phases_are_refused(inputs, tmp_path, phases, message):
    with pytest.raises(ConfigError, match=message):
        run(settings(phases), inputs, tmp_path / "out")


def test_category_without_text_is_refused(inputs, tmp_path):
    (inputs["documents"] / "documents" / "train" / "maths.jsonl").write_text("")
    with pytest.raises(DataError, match="no training text in maths"):
        run(settings(), inputs, tmp_path / "out")


def test_token_bytes_are_those_of_the_tokenizer(inputs, tmp_path):
    run(settings(), inputs, tmp_path / "out")
    table = read_token_num_bytes(tmp_path / "out")
    assert table[:16].tolist() == [0] * 16
    assert np.all(table[16:272] == 1)
    assert np.all(table[272:] > 1)


def test_unused_categories_are_left_for_another_blend(inputs, tmp_path):
    web = [{"until": 1.0, "weights": {"web": 1}}]
    run(settings(web, unused=["maths"]), inputs, tmp_path / "out")
    assert set(Blend.read(tmp_path / "out").train) == {"web"}
    assert not list((tmp_path / "out").rglob("maths*"))
