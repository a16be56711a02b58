import shutil
import subprocess

import pytest

from plait.core.errors import DataError
from plait.data.debian import download, package_pages
from plait.data.pages import Pattern, sample

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here")


def build_deb(folder, name="tiny-doc", version="1:2.0-1", files=None):
    """Build a real package; `files` maps paths to contents."""
    files = files or {
        "usr/share/doc/tiny-doc/html/index.html": b"<p>index</p>",
        "usr/share/doc/tiny-doc/html/a b.html": b"<p>blank</p>",
        "usr/share/doc/tiny-doc/html/logo.png": b"\x89PNG",
        "usr/share/doc/tiny-doc/copyright": b"GPL",
    }
    tree = folder / f"tree-{name}"
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    link = tree / "usr/share/doc/tiny-doc/html/link.html"
    if link.parent.exists():
        link.symlink_to("index.html")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@x>\n"
        "Description: pages for a test\n"
    )
    deb = folder / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--build", tree, deb], check=True, capture_output=True)
    return deb


class FakeApt:
    """Knows packages and hands out files, as apt-cache and apt-get do."""

    def __init__(self, known, known_after_update=()):
        self.known, self.after_update, self.calls = set(known), set(known_after_update), []

    def __call__(self, command, folder):
        self.calls.append(command)
        if "policy" in command:
            return "".join(
                f"{name}:\n  Installed: (none)\n  Candidate: {version}\n  Version table:\n     1\n"
                for name in command[2:]
                for version in ["1.0" if name in self.known else "(none)"]
            )
        if command[-1] == "update":
            self.known |= self.after_update
            return ""
        names = command[command.index("download") + 1 :]
        assert self.known.issuperset(names)
        for name in names:
            (folder / f"{name}_1.0_all.deb").write_bytes(b"package")
        return ""

    @property
    def verbs(self):
        return ["update" if call[-1] == "update" else call[0] for call in self.calls]


@needs_dpkg
def test_pages_come_out_of_a_package_without_unpacking_it(tmp_path):
    deb = build_deb(tmp_path)
    pages = list(sample(package_pages(deb, Pattern(["*.html"])), None, 0))
    assert [(page.url, page.body) for page in pages] == [
        ("file:///usr/share/doc/tiny-doc/html/a%20b.html", b"<p>blank</p>"),
        ("file:///usr/share/doc/tiny-doc/html/index.html", b"<p>index</p>"),
    ]
    assert pages[0].source == "debian:tiny-doc=1:2.0-1"
    assert pages[0].media_type == "text/html"
    assert "/usr/share/doc/tiny-doc/copyright" in (pages[0].licence or "")


@needs_dpkg
def test_a_broken_package_is_named(tmp_path):
    broken = tmp_path / "tiny-doc_1.0_all.deb"
    broken.write_bytes(build_deb(tmp_path).read_bytes()[:300])
    with pytest.raises(DataError, match=r"tiny-doc_1\.0_all\.deb: cannot be unpacked .* delete it"):
        list(package_pages(broken, Pattern(["*"])))


def test_the_first_known_alternative_is_fetched_once(tmp_path):
    apt = FakeApt({"b-doc", "c-doc"})
    debs = download(["a-doc|b-doc|c-doc", "c-doc"], tmp_path, apt)
    assert [deb.name for deb in debs] == ["b-doc_1.0_all.deb", "c-doc_1.0_all.deb"]
    assert apt.verbs == ["apt-cache", "apt-get"]
    assert download(["a-doc|b-doc|c-doc", "c-doc"], tmp_path, apt) == debs
    assert len(apt.calls) == 2


def test_lists_are_updated_only_for_an_unknown_package(tmp_path):
    apt = FakeApt({"a-doc"}, known_after_update={"b-doc"})
    assert len(download(["a-doc", "b-doc"], tmp_path, apt)) == 2
    assert apt.verbs == ["apt-cache", "update", "apt-cache", "apt-get"]


def test_what_apt_does_not_know_is_left_out_with_a_warning(tmp_path, caplog):
    apt = FakeApt({"a-doc"})
    assert [deb.name for deb in download(["a-doc", "b-doc"], tmp_path, apt)] == [
        "a-doc_1.0_all.deb"
    ]
    assert "apt knows no package b-doc here; left out" in caplog.text
    with pytest.raises(DataError, match="apt knows none of the packages b-doc, c-doc"):
        download(["b-doc", "c-doc"], tmp_path, apt)


def test_a_killed_download_leaves_nothing_in_the_cache(tmp_path):
    class Killed(Exception):
        pass

    def run(command, folder):
        if "policy" in command:
            return FakeApt({"a-doc"})(command, folder)
        (folder / "a-doc_1.0_all.deb").write_bytes(b"half")
        raise Killed

    with pytest.raises(Killed):
        download(["a-doc"], tmp_path, run)
    assert list(tmp_path.glob("*.deb")) == []
    assert len(download(["a-doc"], tmp_path, FakeApt({"a-doc"}))) == 1
