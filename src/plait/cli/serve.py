"""`plait serve`: a model behind OpenAI's API and a chat page."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer

from plait.core.errors import ConfigError
from plait.core.run_folder import model_directory
from plait.core.sizes import parse_bytes
from plait.engine.engine import Engine

KEY_VARIABLE = "PLAIT_API_KEY"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Below this size one thread is faster than several: the work per operation is too small to share.
_ONE_THREAD_PARAMETERS = 20_000_000
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


def serve(
    model: str,
    address: Address,
    *,
    memory: str | None,
    context: int | None,
    max_num_seqs: int | None,
    api_key_file: Path | None,
    dtype: str | None,
    prefix_cache: bool,
) -> None:
    """Load a model directory, run folder or hub id and answer requests until told to stop.

    Raises: ConfigError for a wrong option, PlaitError if the model cannot be loaded.
    """
    try:
        from plait.serve.api import ServeSettings, build_app
        from plait.serve.run import Server, listen
    except ImportError as error:
        raise ConfigError(
            f"plait serve needs {error.name}, which is not installed: pip install 'plait[serve]'"
        ) from None
    api_key = read_api_key(api_key_file)
    # Before the model is loaded: a port that is taken is told at once.
    with listen(*address) as listener:
        engine = _load(
            model_directory(model),
            dtype=_dtype(dtype),
            max_num_seqs=max_num_seqs,
            max_context=context,
            memory_bytes=None if memory is None else max(parse_bytes(memory), 1),
            prefix_cache=prefix_cache,
        )
        if engine.model.spec.num_parameters < _ONE_THREAD_PARAMETERS:
            torch.set_num_threads(1)
        typer.echo(engine.memory_plan.describe())
        _warn_if_open(address.host, api_key)
        app = build_app(engine, ServeSettings(model_name=model, api_key=api_key))
        url = _url(*listener.getsockname()[:2])
        Server(app, lambda: typer.echo(_welcome(model, url))).run(sockets=[listener])


def _load(directory: Path, **options: Any) -> Engine:
    """Load an engine in a thread that then ends, and its OpenMP threads with it.

    Beside those of the thread that runs the engine they would be more than there are processors,
    and then GNU's OpenMP lets none of them spin: decoding takes 1.4 times as long.
    """
    with ThreadPoolExecutor(1) as loading:
        return loading.submit(Engine.from_path, directory, **options).result()


def read_api_key(file: Path | None) -> str | None:
    """Return the key from a file or the environment; a key on the command line would be seen by
    every user of the machine.

    Raises: ConfigError if the file cannot be read or holds no key.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file}: {error}") from None
    if not key:
        raise ConfigError(f"--api-key-file {file}: the file is empty; write a key into it")
    return key


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in DTYPES:
        raise ConfigError(f"--dtype {name}: allowed: {', '.join(DTYPES)}")
    return DTYPES[name]


def _warn_if_open(host: str, api_key: str | None) -> None:
    if host not in _LOOPBACK and api_key is None:
        typer.echo(
            f"warning: anyone who reaches {host} may use this server; --api-key-file or "
            f"{KEY_VARIABLE} asks for a key",
            err=True,
        )


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _welcome(model: str, url: str) -> str:
    return (
        f"serving {model}\n"
        f"  chat page   {url}/\n"
        f"  OpenAI API  {url}/v1\n"
        "Ctrl-C or SIGTERM finishes what is being answered and stops"
    )
