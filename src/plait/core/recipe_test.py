from pathlib import Path

import pytest

from plait.core.errors import ConfigError
from plait.core.recipe import inputs_of, read_recipe


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name[1:]}.toml").write_text(text)
    return folder


@pytest.fixture
def recipe(tmp_path):
    return write(
        tmp_path,
        _01_curate='stage = "curate"\nseed = 1\n',
        _02_words='stage = "tokenizer"\nvocab_size = 300\n[inputs]\ndocuments = "curate"\n',
    )


def test_stages_come_in_order_with_inputs_and_settings(recipe):
    curate, words = read_recipe(recipe).stages
    assert (curate.name, curate.key, curate.kind) == ("01_curate", "curate", "curate")
    assert words.inputs == {"documents": "curate"}
    assert words.table == {"vocab_size": 300}


def test_overrides_are_toml_or_plain_text(recipe):
    overrides = ["words.vocab_size=512", "words.deep.list=[1, 2]", "curate.name=plain text"]
    curate, words = read_recipe(recipe, overrides).stages
    assert words.table == {"vocab_size": 512, "deep": {"list": [1, 2]}}
    assert curate.table["name"] == "plain text"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("wrods.vocab_size=1", "no stage 'wrods'; did you mean 'words'"),
        ("words=1", "write stage.key=value"),
        ("words.vocab_size", "write stage.key=value"),
        ("words.vocab_size.deep=1", "'vocab_size' is not a table"),
    ],
)
def test_bad_overrides(recipe, override, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe(recipe, [override])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"_curate": 'stage = "curate"'}, "named NN_name.toml"),
        ({"_01_curate": "seed = 1"}, "needs a line such as stage"),
        ({"_01_a": 'stage = "x"\n[inputs]\nmodel = "b"'}, "names 'b', no earlier stage"),
        ({"_01_a": 'stage = "x"', "_02_a": 'stage = "x"'}, "second stage called 'a'"),
        ({"_01_a": 'stage = "x"\ninputs = 3'}, "inputs is a table"),
        ({"_01_a": 'stage = "x"\n[inputs]\nd = 3'}, "input 'd' is 3; give stages or paths"),
        ({"_01_a": 'stage = "x"\n[inputs]\nd = []'}, "give stages or paths"),
        ({"_01_a": 'stage = "x"\n[inputs]\nd = ["./b", "./b"]'}, "names a source twice"),
    ],
)
def test_bad_files(tmp_path, files, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe(write(tmp_path, **files))


def test_missing_input_stage_names_the_nearest(tmp_path):
    write(tmp_path, _01_curate='stage = "curate"', _02_b='stage = "b"\n[inputs]\nd = "curat"')
    with pytest.raises(ConfigError, match=r"02_b\.toml.*did you mean 'curate'"):
        read_recipe(tmp_path)


def test_missing_or_empty_folder(tmp_path):
    with pytest.raises(ConfigError, match="no such recipe folder"):
        read_recipe(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"holds no NN_stage\.toml"):
        read_recipe(tmp_path)


def test_an_input_may_be_a_path(tmp_path):
    write(tmp_path, _01_sft='stage = "sft"\n[inputs]\nmodel = "./elsewhere"')
    assert read_recipe(tmp_path).stages[0].inputs == {"model": "./elsewhere"}


def test_a_role_may_have_several_sources(tmp_path):
    write(tmp_path, _01_b='stage = "blend"\n[inputs]\ndocuments = ["./x", "./y"]\nmodel = "./z"')
    [stage] = read_recipe(tmp_path).stages
    assert stage.inputs == {"documents": "./x", "documents../y": "./y", "model": "./z"}
    paths = {role: Path(source) for role, source in stage.inputs.items()}
    assert inputs_of(paths, "documents") == [Path("x"), Path("y")]
