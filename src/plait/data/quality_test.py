import json

import pytest
import torch
from datatrove.data import Document

from plait.core.errors import ConfigError
from plait.data.labels import SUBJECTS, ask_labels, read_label
from plait.data.quality import (
    check_classifier,
    open_classifier,
    open_sequence_classifier,
    score_step,
)
from plait.data.quality_settings import ScoreSettings
from plait.data.steps import Task
from plait.data.student import Features, train
from plait.data.student_test import pages

WORDS = "the cat sat on a mat while rain fell over hills and seas"


def write_classifier(folder, num_labels, positions=16):
    """Write a tiny BERT with random weights, as transformers does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS.split()])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
        num_labels=num_labels,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.5)
        model.classifier.bias.fill_(2.5 if num_labels == 1 else 0.0)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model


def sentences(num):
    words = WORDS.split()
    return [" ".join(words[(i * 5 + j * j) % len(words)] for j in range(1 + i)) for i in range(num)]


@pytest.mark.parametrize("num_labels", [1, 6])
def test_a_sequence_classifier_scores_the_middle_of_each_text(tmp_path, num_labels):
    model = write_classifier(tmp_path, num_labels)
    texts = sentences(40)
    scores = open_sequence_classifier(tmp_path, 512)(texts)
    for text, score in zip(texts, scores, strict=True):
        words = text.split()
        extra = max(0, len(words) - 14)  # 16 positions, two of them for the ends
        words = words[extra // 2 : len(words) - (extra - extra // 2)]
        ids = torch.tensor([[2, *(4 + WORDS.split().index(word) for word in words), 3]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        if num_labels == 1:
            wanted = float(logits[0].clip(0, 5))
        else:
            wanted = float((logits.softmax(0) * torch.arange(6)).sum())
        assert score == pytest.approx(wanted, abs=1e-4)
    assert 0 <= min(scores) < max(scores) <= 5


def test_directories_without_a_classifier_are_refused(tmp_path):
    def check(message):
        with pytest.raises(ConfigError, match=message):
            check_classifier(ScoreSettings(name="good", by=str(tmp_path)), None)

    check(r"holds no config\.json")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    check("names BertModel; a classifier is a ...ForSequenceClassification")
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["BertForSequenceClassification"]})
    )
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_sequence_classifier(tmp_path, 64)


def test_pickled_weights_are_not_read(tmp_path):
    model = write_classifier(tmp_path, 1)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_sequence_classifier(tmp_path, 65)


def test_outputs_that_are_no_score_are_refused(tmp_path):
    write_classifier(tmp_path, 3)
    with pytest.raises(ConfigError, match="has 3 outputs"):
        open_sequence_classifier(tmp_path, 66)


@pytest.mark.parametrize(
    ("name", "answer", "label"),
    [
        ("educational", "It explains much.\nLabel: 4", 4.0),
        ("educational", "Label: 1\nNo, better:\n**Label: 3.5**", 3.5),
        ("educational", "label = 2 / 5", 2.0),
        ("educational", "5", 5.0),
        ("educational", "Label: 6", None),
        ("educational", "Label: -1", None),
        ("educational", "Label: four", None),
        ("educational", "I rate this a 4 of 5 since", None),
        ("educational", "", None),
        ("subject", "Label: Physics.", "physics"),
        ("subject", "Label: earth and environment", "earth and environment"),
        ("subject", "Label: phlogistics", None),
    ],
)
def test_labels_are_read_from_answers(name, answer, label):
    assert read_label(name, answer) == label


def test_a_model_is_asked_with_the_rubric_and_an_excerpt():
    asked = []

    def ask(prompts):
        asked.extend(prompts)
        return ["Label: law and politics", None]

    long = "start " + "x" * 50_000 + " end"
    assert ask_labels("subject", [long, "short"], ask) == ["law and politics", None]
    assert all(name in asked[0] for name in SUBJECTS)
    assert "start x" in asked[0]
    assert asked[0].rstrip().endswith("x end")
    assert len(asked[0]) < 8_000
    assert asked[1].rstrip().endswith("short")


def through(step, texts, tmp_path, **ask):
    dropped = []
    task = Task("c", lambda document, reason: dropped.append((document.id, reason)), tmp_path, ask)
    documents = [Document(text, str(i), metadata={}) for i, text in enumerate(texts)]
    return list(step.run(iter(documents), task)), dropped


def test_documents_without_a_label_are_dropped(tmp_path):
    step = score_step(ScoreSettings(name="difficulty", by="endpoint"), None)
    answers = {"0": "Label: 2", "1": None, "2": "no idea"}

    def ask(prompts):
        return [answers[prompt.rstrip()[-1]] for prompt in prompts]

    kept, dropped = through(step, ["a 0", "b 1", "c 2"], tmp_path, label=ask)
    assert [document.metadata for document in kept] == [{"difficulty": 2.0}]
    assert dropped == [("1", "not_labelled"), ("2", "not_labelled")]


def test_a_student_labels_in_batches(tmp_path):
    texts, scores = pages(100)
    train(texts, {"educational": scores}, Features("words")).write(tmp_path / "student")
    step = score_step(ScoreSettings(name="educational"), tmp_path)
    kept, dropped = through(step, texts, tmp_path)
    assert [document.id for document in kept] == [str(i) for i in range(100)]
    assert not dropped
    means = [sum(d.metadata["educational"] for d in kept[s::6]) / len(kept[s::6]) for s in range(6)]
    assert means == sorted(means)


def test_what_a_score_needs_is_named(tmp_path):
    task = Task("c", lambda document, reason: None, tmp_path, {})
    with pytest.raises(ConfigError, match=r"student = .* under \[inputs\]"):
        open_classifier(ScoreSettings(name="educational"), None, task)
    with pytest.raises(ConfigError, match=r"endpoints\.label"):
        open_classifier(ScoreSettings(name="educational", by="endpoint"), None, task)
