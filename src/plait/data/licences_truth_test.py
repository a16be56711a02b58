"""Ground truth for licences: what Debian's copyright files say of the files of source packages.

What is detected comes from the authors' tree alone: the head of each file, else the licence files
above it. Debian's statement is made by people; where it names no licence that SPDX knows ("Expat
with embedded exception") there is nothing to compare with.
"""

import collections
import shutil
from urllib.parse import unquote

import pytest

from plait.data.debian_code import (
    download_sources,
    repository_licences,
    source_files,
    stated_licences,
)
from plait.data.licences import head_licence, is_permissive, normalised
from plait.data.pages import Pattern, sample

PACKAGES = [
    "abseil", "bash", "brotli", "busybox", "catch2", "commons-io", "coreutils", "curl", "expat",
    "golang-github-gorilla-mux", "golang-github-pkg-errors", "golang-github-spf13-cobra",
    "golang-yaml.v2", "grep", "guava-libraries", "jackson-core", "jinja2", "jquery", "junit4",
    "leveldb", "libevent", "libpng1.6", "libuv1", "lz4", "make-dfsg", "mbedtls", "nlohmann-json3",
    "nginx", "openssl", "pugixml", "python-django", "rapidjson", "re2", "redis", "rust-clap", "sed",
    "sympy", "tar", "zlib",
]  # fmt: skip
CODE = Pattern(
    f"*.{suffix}"
    for suffix in "c h cc cpp hpp go java js ts py rs".split()  # noqa: SIM905
)
FILES_OF_A_PACKAGE = 40


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get")
def test_verdicts_agree_with_debian_s_copyright_files(tmp_path):
    verdicts, expressions = collections.Counter(), collections.Counter()
    disagreements = collections.Counter()
    for package in download_sources(PACKAGES, tmp_path):
        stated, repository = stated_licences(package), repository_licences(package)
        for page in sample(source_files(package, CODE), FILES_OF_A_PACKAGE, seed=0):
            path = unquote(page.url).split("/", 4)[4]
            truth = normalised(stated.of(path))
            if truth is None:
                continue
            text = page.body.decode("utf-8", errors="replace")
            found = head_licence(text) or repository.of(path)
            agrees = found is not None and is_permissive(found) == is_permissive(truth)
            verdicts[agrees] += 1
            expressions[found == truth] += 1
            disagreements.update([(package.name, truth, found)] * (not agrees))
    share = verdicts[True] / verdicts.total()
    print(  # noqa: T201
        f"verdict {share:.4f}, same expression {expressions[True] / expressions.total():.4f} of "
        f"{verdicts.total()} files; {disagreements.most_common(12)}"
    )
    assert verdicts.total() > 800
    assert share >= 0.95, disagreements.most_common()
