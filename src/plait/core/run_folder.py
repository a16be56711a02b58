"""Run folders: `runs/<recipe>/<NN_stage>/`, one per stage, finished only when its manifest stands.

    settings.json    resolved settings and the digests of the inputs; written first
    metrics.jsonl    one line per report of a long stage
    (product)        whatever the stage makes
    manifest.json    what was made, from what, by which versions; written last, atomically

The fingerprint (stage kind, settings, input digests) decides what happens to a folder that is
there already: finished under the same fingerprint, it is skipped; unfinished, it is resumed; under
another fingerprint it is moved to `.old/`, for nothing finished is ever deleted; only its `cache/`,
what was downloaded, stays.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from plait.core.artifact import file_digest, file_states, json_bytes, write_json
from plait.core.errors import ConfigError, DataError

# Machine-written or scratch: not part of what a stage makes, so not part of its digest, neither in
# the stage's folder nor in those of its rounds.
NOT_PRODUCT = {"settings.json", "manifest.json", "metrics.jsonl", "cache", "logs", "checkpoints"}
VERSIONS_OF = ("plait", "torch", "numpy", "tokenizers", "datatrove")

State = Literal["fresh", "unfinished", "finished"]


class RunFolder(NamedTuple):
    """A stage's folder, its fingerprint and what was found there."""

    path: Path
    fingerprint: str
    state: State
    set_aside: Path | None
    """Where an earlier folder of other settings went."""


def open_run_folder(
    path: Path,
    kind: str,
    settings: dict[str, Any],
    inputs: dict[str, Path],
    files: Iterable[Path] = (),
    *,
    keep: bool = False,
) -> RunFolder:
    """Make `path` ready for a stage, without touching finished work of the same fingerprint.

    `inputs` maps roles to finished run folders, or to any other folder or file; `files` are the
    user's files that the settings name. A folder that holds other work is moved aside, or refused
    if `keep`.
    Raises: ConfigError for a folder that is refused, or an input that lies in `path`.
    """
    files = list(files)
    _check_outside(path, [*inputs.values(), *files])
    origin = {
        "stage": kind,
        "settings": settings,
        "inputs": {role: input_digest(folder) for role, folder in sorted(inputs.items())},
        "files": [list(state) for state in file_states(files)],
    }
    fingerprint = _digest_json(origin)
    set_aside = None
    found = _read_json(path / "settings.json")
    changed = found is None or found.get("fingerprint") != fingerprint
    if changed and _holds_work(path):
        if keep:
            raise ConfigError(
                f"{path}: is not empty and holds no work with these settings and inputs; give a "
                "new folder"
            )
        set_aside = _move_aside(path, found)
        if (set_aside / "cache").exists():  # downloads do not depend on settings
            path.mkdir()
            (set_aside / "cache").rename(path / "cache")
    state: State = "fresh"
    if not changed:
        state = "finished" if _read_json(path / "manifest.json") else "unfinished"
    else:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "settings.json", {"fingerprint": fingerprint, **origin})
    return RunFolder(path, fingerprint, state, set_aside)


def finish_run_folder(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Write the manifest: `facts` (metrics, wall time, memory), versions and product hashes."""
    product = {
        str(file.relative_to(folder.path)): file_digest(file) for file in _product(folder.path)
    }
    manifest = {
        "fingerprint": folder.fingerprint,
        **facts,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "versions": _versions(),
        "product": product,
        "digest": _digest_json(product),
    }
    write_json(folder.path / "manifest.json", manifest)


def model_directory(source: Path | str) -> Path:
    """Return the model that a stage's run folder holds, or the path itself if it is none."""
    nested = Path(source) / "model"
    return nested if (nested / "config.json").is_file() else Path(source)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a finished run folder.

    Raises: DataError if the folder is not finished.
    """
    manifest = _read_json(path / "manifest.json")
    if manifest is None:
        raise DataError(
            f"{path}: not finished (no manifest.json); run its recipe again to resume it"
        )
    return manifest


def input_digest(path: Path) -> str:
    """Digest what a stage reads: by manifest for run folders, by content for other paths.

    Raises: ConfigError if there is nothing at `path`, DataError if it is an unfinished run folder.
    """
    if _is_run_folder(path):
        return read_manifest(path)["digest"]
    if path.is_file():
        return file_digest(path)
    if path.is_dir():
        return _digest_json(
            {str(file.relative_to(path)): file_digest(file) for file in _product(path)}
        )
    raise ConfigError(f"{path}: input does not exist")


def check_free(out: Path) -> None:
    """Refuse an output that holds anything but the work of a stage, before it is touched.

    Raises: ConfigError.
    """
    if out.is_file() or (_holds_work(out) and not _is_run_folder(out)):
        raise ConfigError(f"--out {out}: holds something else; give a new or empty folder")


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a run directory alone; the lock goes with the process, however it ends.

    Its file, `.NAME.lock`, lies beside the directory: inside, it would be moved aside with it.
    Raises: ConfigError if another process holds it.
    """
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f".{directory.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{directory}: another plait run works here; wait for it or choose another --out"
            ) from None
        yield


def _product(path: Path, *, in_stage: bool = False) -> Iterator[Path]:
    """Yield the files that count; a user's folder `logs` does, a stage's does not."""
    in_stage = in_stage or _is_run_folder(path)
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or (in_stage and entry.name in NOT_PRODUCT):
            continue
        if entry.is_dir():
            yield from _product(entry, in_stage=in_stage)
        elif entry.is_file():
            yield entry


def _holds_work(path: Path) -> bool:
    """Say whether a folder holds more than a stage's settings, downloads and files that a kill cut
    off."""
    free = {"settings.json", "cache"} if _is_run_folder(path) else {"cache"}
    kept = (entry.name for entry in path.iterdir()) if path.exists() else ()
    return any(name not in free and not name.startswith(".") for name in kept)


def _is_run_folder(path: Path) -> bool:
    """Say whether a stage wrote this folder; many other programs have a settings.json, too."""
    return {"fingerprint", "stage"} <= (_read_json(path / "settings.json") or {}).keys()


def _check_outside(path: Path, sources: Iterable[Path]) -> None:
    """Refuse a stage that would move aside or overwrite what it reads."""
    for source in sources:
        if source.resolve().is_relative_to(path.resolve()):
            raise ConfigError(
                f"{source}: is read by the stage that writes the folder {path}; give another "
                "--out, or a copy of the input"
            )


def _move_aside(path: Path, found: dict[str, Any] | None) -> Path:
    old = path.parent / ".old"
    old.mkdir(exist_ok=True)
    label = (found or {}).get("fingerprint", "unknown")[:8]
    target, copy = old / f"{path.name}-{label}", 1
    while target.exists():
        copy += 1
        target = old / f"{path.name}-{label}.{copy}"
    return path.rename(target)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _digest_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(json_bytes(text)).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    """Return the revision of the source tree, `-dirty` if changed; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = Path(__file__).parent
    try:
        return subprocess.run(
            command, cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
