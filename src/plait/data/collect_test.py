import sysconfig

import pytest

from plait.core.errors import ConfigError, DataError
from plait.data.collect import collect
from plait.data.curate_settings import CurateSettings
from plait.data.debian_test import FakeApt, build_deb, needs_dpkg
from plait.data.pages import Page, sample
from plait.data.warc import read_records

METADATA = """Metadata-Version: 2.4
Name: tidy
License-Expression: MIT
Description-Content-Type: text/markdown; charset=UTF-8

# Tidy

Größe matters.
"""


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Put a small Python installation in place of the real one."""
    files = {
        "lib/a.py": "x = 1\n",
        "lib/pydoc_data/topics.py": "topics = {'if': 'The if statement', 'and': 'Both'}\n",
        "lib/site-packages/wrong.py": "",
        "site/tidy-1.0.dist-info/METADATA": METADATA,
        "site/tidy-1.0.dist-info/LICENSE.txt": "all rights",
        "site/tidy/guide.html": "<p>guide</p>",
        "site/bare-1.0.dist-info/METADATA": "Metadata-Version: 2.4\nName: bare\n",
    }
    for name, text in files.items():
        path = tmp_path / "python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    paths = {"stdlib": tmp_path / "python/lib", "purelib": tmp_path / "python/site"}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(paths[name]))


def settings(**category):
    return CurateSettings.parse({"categories": {"c": category}}, "recipe")


def pages_of(shards):
    return [record for shard in shards for record in read_records(shard.path)]


@pytest.mark.usefixtures("python")
def test_installed_python_gives_descriptions_topics_and_files(tmp_path):
    source = {"pages": ["site-packages/*", "stdlib/*"], "exclude": ["*LICENSE*"]}
    pages = pages_of(collect(settings(installed=[source]), tmp_path / "cache"))
    assert [(page.url, page.body.decode().strip(), page.licence) for page in pages] == [
        ("python:site-packages/tidy-1.0.dist-info/METADATA", "# Tidy\n\nGröße matters.", "MIT"),
        ("python:site-packages/tidy/guide.html", "<p>guide</p>", None),
        ("python:stdlib/a.py", "x = 1", "PSF-2.0"),
        ("python:stdlib/pydoc_data/topics.py#and", "Both", "PSF-2.0"),
        ("python:stdlib/pydoc_data/topics.py#if", "The if statement", "PSF-2.0"),
    ]
    media_types = [page.media_type for page in pages]
    assert media_types == ["text/markdown", "text/html", "text/x-python", *["text/x-rst"] * 2]


@pytest.mark.usefixtures("python")
def test_licence_texts_are_no_prose(tmp_path):
    pages = pages_of(collect(settings(installed=[{}]), tmp_path / "cache"))
    assert "LICENSE" not in " ".join(page.url for page in pages)
    assert len(pages) == 4


@pytest.mark.usefixtures("python")
def test_without_apt_the_fallback_is_taken_with_one_warning(tmp_path, caplog):
    def no_apt(command, folder):
        raise FileNotFoundError(2, "No such file or directory", "apt-cache")

    source = {"packages": ["tiny-doc"], "fallback": {"pages": ["stdlib/a.py"]}}
    shards = collect(settings(debian=[source]), tmp_path / "cache", no_apt)
    assert [page.body for page in pages_of(shards)] == [b"x = 1\n"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "Debian packages tiny-doc cannot be had" in record.message

    with pytest.raises(DataError, match=r"'c': Debian packages tiny-doc .* give the source a fall"):
        collect(settings(debian=[{"packages": ["tiny-doc"]}]), tmp_path / "cache", no_apt)


@needs_dpkg
def test_packages_are_collected_once(tmp_path):
    class Apt(FakeApt):
        def __call__(self, command, folder):
            printed = super().__call__(command, folder)
            if "download" in command:
                for deb in folder.glob("*.deb"):
                    deb.unlink()
                build_deb(tmp_path).rename(folder / "tiny-doc_2.0_all.deb")
            return printed

    apt = Apt({"tiny-doc"})
    source = {"packages": ["tiny-doc"], "pages": ["*.html"], "max_pages": 1}
    shards = collect(settings(debian=[source]), tmp_path / "cache", apt)
    (page,) = pages_of(shards)
    assert page.source == "debian:tiny-doc=2.0"
    assert page.media_type == "text/html"
    num_calls = len(apt.calls)
    assert collect(settings(debian=[source]), tmp_path / "cache", apt) == shards
    everything = settings(debian=[{**source, "max_pages": None}])
    assert len(pages_of(collect(everything, tmp_path / "cache", apt))) == 2
    assert len(apt.calls) == num_calls
    nothing = settings(debian=[{**source, "pages": ["*.pdf"]}])
    with pytest.raises(DataError, match=r"no page matches \*\.pdf"):
        collect(nothing, tmp_path / "cache", apt)


def test_local_files_become_pages_and_edits_are_noticed(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/b.md").write_text("second")
    (tmp_path / "notes/a.html").write_text("<p>first</p>")
    source = {"paths": [f"{tmp_path}/notes/**"], "licence": "CC0-1.0"}
    shards = collect(settings(files=[source]), tmp_path / "cache")
    pages = pages_of(shards)
    assert [(page.media_type, page.body, page.licence) for page in pages] == [
        ("text/html", b"<p>first</p>", "CC0-1.0"),
        ("text/markdown", b"second", "CC0-1.0"),
    ]
    (tmp_path / "notes/b.md").write_text("edited")
    edited = pages_of(collect(settings(files=[source]), tmp_path / "cache"))
    assert edited[1].body == b"edited"


@pytest.mark.parametrize("kind", ["warc", "files"])
def test_a_pattern_without_files_is_refused_before_anything_else(tmp_path, kind):
    wrong = settings(**{kind: [{"paths": [f"{tmp_path}/*.warc.gz"]}]})
    with pytest.raises(ConfigError, match=r"categories\.c: no file matches '.*\*\.warc\.gz'"):
        wrong.files_read()


def test_a_sample_is_a_fixed_choice(tmp_path):
    pages = [Page(f"u{i:02d}", "text/html", b"", "s", None) for i in range(50)]
    chosen = list(sample(iter(pages), 10, seed=0))
    assert len(chosen) == 10
    assert chosen == list(sample(reversed(pages), 10, seed=0))
    assert chosen == sorted(chosen)
    assert chosen != list(sample(pages, 10, seed=1))
    assert set(chosen) < set(sample(pages, 20, seed=0))
