"""The page of a made-up run: what it shows, that it is inert, and that gaps do not break it."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from plait.core.errors import ConfigError, PlaitError
from plait.eval import plots
from plait.eval.fixture_test import write_run, write_stage
from plait.eval.plots import Curve, stacked_bars, training_curves
from plait.eval.read import read_stages
from plait.eval.report import duration, write_report, write_stage_report

EVIL = "<script>alert('$x_1$')</script>"


class Tags(HTMLParser):
    """Collects tags, attributes and ids of a page."""

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes, self.ids = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "tiny")
    return write_report(run).read_text(encoding="utf-8")


def test_every_figure_is_there(page):
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    # Accuracy, well-formedness, tokens, two before and after cut traces; loss and bits of
    # pretraining, loss of SFT; the funnel.
    assert len(svgs) == 9
    for svg in svgs:
        ElementTree.fromstring(svg)
    words = page.replace("\n", " ")
    for text in ("thinking off, all", "tags left to the model", "near_duplicate", "phase 1"):
        assert f">{text}</text>" in words, text
    assert ">full</text>" in svgs[0]


def test_headline_numbers(page):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "accuracy, thinking on 98.7%" in text
    assert "accuracy, thinking off 61.7%" in text
    assert "peak memory 1.50 GiB" in text
    row = re.search(r"english 04_pretrain ([\d.]+) ([\d.]+) (-[\d.]+) %", text)
    before, after, change = (float(number) for number in row.groups())
    assert before > after
    assert change == pytest.approx(100 * (after / before - 1), abs=0.1)
    assert "torch 2.13.0" in text
    assert re.search(r" 01_curate curate .{1,20} not known ", text)
    assert re.search(r" 04_pretrain pretrain .{1,20} 1.50 GiB ", text)
    assert "checkpoint tool calls, exact 05_sft 25.0% 06 75.0%" in text
    assert "not finished" not in text


def test_the_page_is_self_contained_and_well_built(page):
    tags = Tags(page)
    assert "script" not in tags.names
    assert "link" not in tags.names
    outside = [value for name, value in tags.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in outside)
    assert len(tags.ids) == len(set(tags.ids))
    for reference in [*outside, *re.findall(r"url\((#[^)]+)\)", page)]:
        assert reference[1:] in tags.ids
    # Colours follow the page from light to dark.
    assert not re.findall(r"(?:fill|stroke): #0", page)


def test_user_text_is_escaped(tmp_path):
    run = write_run(tmp_path / "a & b", family=EVIL, question=f"{EVIL} & $x_1$?")
    funnel = run / "01_curate" / "funnel.json"
    funnel.write_text(funnel.read_text().replace('"maths"', json.dumps(EVIL)))
    page = write_report(run).read_text(encoding="utf-8")
    assert "script" not in Tags(page).names
    assert "&lt;script&gt;alert(" in page
    assert "<title>a &amp; b · plait</title>" in page


def test_the_same_run_gives_the_same_bytes(page, tmp_path):
    write_run(tmp_path / "tiny")
    code = "import sys, pathlib; from plait.eval.report import write_report; "
    code += "write_report(pathlib.Path(sys.argv[1]))"
    # Another process: nothing may depend on hash seeds or on figures drawn before.
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "tiny")], check=True)
    assert (tmp_path / "tiny" / "report.html").read_text(encoding="utf-8") == page


def test_written_text_and_the_tokenizer_s_languages_are_shown(tmp_path):
    run = tmp_path / "mine"
    tokenizer = write_stage(run, "01_tokenizer", "tokenizer")
    row = {"documents": 3, "characters": 1200, "tokens": 400, "tokens_per_word": None}
    row |= {"characters_per_token": 3.0, "bytes_per_token": 9.0}
    (tokenizer / "fertility.json").write_text(json.dumps({"th": row}))
    written = write_stage(run, "02_qa", "synth")
    steps = {"questions": {"items_in": 9, "items_kept": 7, "dropped": {"refused": 2}}}
    funnel = {"steps": steps, "documents": 7, "conversations": 0, "cost": 1.5}
    funnel |= {"prompt_tokens": 5000, "answer_tokens": 2500}
    (written / "funnel.json").write_text(json.dumps(funnel))
    page = write_report(run).read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "th 3 1,200 400 3.00 9.00" in text
    assert "questions 9 7 refused 2" in text
    assert "5,000 tokens read and 2,500 written, cost 1.50" in text


def test_absent_stages_leave_notes(tmp_path):
    write_stage(tmp_path, "01_one", "write", {"text": "a"}, length=1.0)
    write_stage(tmp_path, "02_two", "write", finished=False)
    (tmp_path / ".old").mkdir()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for note in ("No finished evaluation", "No stage of this run has trained", "No curation"):
        assert note in page
    assert page.count("not finished") == 1
    assert "<svg" not in page


def test_a_folder_without_stages_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no stage"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_stage_that_stands_alone_keeps_its_report(tmp_path):
    line = {"step": 1, "tokens": 64, "loss": 5.0, "learning_rate": 1e-3}
    folder = write_stage(tmp_path, "child", "distill", lines=[line])
    page = write_stage_report(folder).read_text(encoding="utf-8")
    assert "<svg" in page
    assert write_report(folder).read_text(encoding="utf-8") == page


def test_unfinished_training_is_shown(tmp_path):
    line = {"step": 1, "tokens": 64, "loss": 5.0, "learning_rate": 1e-3}
    folder = write_stage(tmp_path, "04_pretrain", "pretrain", lines=[line], finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "tok')
    assert [len(stage.lines) for stage in read_stages(tmp_path)] == [1]
    assert write_report(tmp_path).read_text(encoding="utf-8").count("<svg") == 1


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlaitError, match=r"plait\[eval\]"):
        stacked_bars("x", ["row"], [Curve("part", [1.0])], "label")


def test_long_runs_are_thinned(tmp_path):
    steps = list(range(1, 20_001))
    svg = training_curves("long", steps, [1.0 / step for step in steps], [1e-3] * len(steps))
    assert len(svg) < 100_000
    assert plots._bins(steps, steps).mean[0] == pytest.approx(sum(range(1, 168)) / 167)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (83.0, "1 min 23 s"), (7_265.0, "2 h 01 min")]
)
def test_durations_are_said_in_two_units(seconds, text):
    assert duration(seconds) == text
