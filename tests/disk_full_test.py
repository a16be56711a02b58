"""A disk that fills up while pages are curated: a real one, a small file system in memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plait.data.curate_test import crawl

PLAIT = Path(sys.executable).with_name("plait")
RECIPE = """
stage = "curate"
workers = 1
dedup = {{ ngram_characters = 12, num_bands = 8, hashes_per_band = 5 }}
[categories.web]
extractor = "resiliparse"
languages = ["en", "de"]
url_lists = false
warc = [{{ paths = ["{pages}/*.warc.gz"] }}]
"""
# In a mount namespace of its own: whoever runs this needs no rights and leaves nothing mounted.
SCRIPT = """
mount -t tmpfs -o size=160k tmpfs runs || exit 77
"{plait}" run recipe
echo "status $?"
mount -o remount,size=64m runs
"{plait}" run recipe
echo "status $?"
cp runs/recipe/01_curate/funnel.json .
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_a_full_disk_stops_with_one_sentence_and_the_same_command_goes_on(tmp_path):
    for name in ("pages", "recipe", "runs"):
        (tmp_path / name).mkdir()
    crawl(tmp_path / "pages")
    (tmp_path / "recipe/01_curate.toml").write_text(RECIPE.format(pages=tmp_path / "pages"))
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c"]
    done = subprocess.run(
        [*command, SCRIPT.format(plait=PLAIT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTHONWARNINGS": "default"},
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file systems of one's own here: {done.stderr.strip()}")
    assert [line for line in done.stdout.splitlines() if "status" in line] == [
        *("status 1", "status 0"),
    ], done.stdout + done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "the disk is full" in error
    assert "the same command goes on from here" in error
    assert "Traceback" not in done.stderr
    assert '"documents_in": 60' in (tmp_path / "funnel.json").read_text()
