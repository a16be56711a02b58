"""Text to token ids and back: a thin class around the `tokenizers` library and a chat template.

It reads any Hugging Face tokenizer directory and writes ones that transformers, vLLM and
llama.cpp's converter read. Two ways of encoding are kept apart: `encode` turns the special-token
strings it meets into special tokens, `encode_plain` never does and is what text from pages and
users goes through.

What it is not: a trainer (see `train_tokenizer`).
"""

import json
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from plait.core.artifact import write_atomic, write_json
from plait.core.errors import DataError, RequestError
from plait.data.chat import ChatTemplate, Message

END_OF_TURN = "<SPECIAL_12>"


class Tokenizer:
    """A byte-level BPE tokenizer with its special tokens and chat template.

    `named` maps transformers' names (`bos_token`, `eos_token`, `pad_token`, `unk_token`) to
    strings; these tokens become special where the backend does not mark them so. `chat_template` is
    Jinja source, or None for tokenizers of base models.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        named: Mapping[str, str],
        chat_template: str | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._named = dict(named)
        self.chat_template = chat_template
        for name, token in self._named.items():
            if backend.token_to_id(token) is None:
                raise DataError(f"{name} is {token!r}, which the vocabulary does not hold")
        if "eos_token" not in self._named:
            raise DataError("the tokenizer names no eos_token; add it to tokenizer_config.json")
        _mark_special(backend, set(self._named.values()))

    @classmethod
    def from_directory(cls, path: Path | str) -> "Tokenizer":
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja if it stands apart.

        Raises: DataError naming the file that is missing or cannot be read.
        """
        path = Path(path)
        file = path / "tokenizer.json"
        if not file.is_file():
            raise DataError(f"{path}: no tokenizer.json; a fast tokenizer is needed")
        try:
            backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception for a file it cannot parse
            raise DataError(f"{file}: not a tokenizer: {error}") from None
        config = _read_json(path / "special_tokens_map.json") | _read_json(
            path / "tokenizer_config.json"
        )
        named = {
            name: text
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (text := _token_text(config.get(name))) is not None
        }
        try:
            return cls(backend, named, _find_chat_template(path, config))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def save(self, directory: Path | str) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
        directory = Path(directory)
        write_atomic(directory / "tokenizer.json", self._backend.to_str(pretty=True))
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self._named,
            "added_tokens_decoder": {
                str(id_): {"content": token.content, "special": token.special}
                for id_, token in sorted(self._backend.get_added_tokens_decoder().items())
            },
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        write_json(directory / "special_tokens_map.json", self._named)
        write_json(directory / "tokenizer_config.json", config)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id, special tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens by their text."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: id_ for id_, token in added.items() if token.special}

    @cached_property
    def eos_id(self) -> int:
        """Id that ends a document."""
        return self._id_of("eos_token")

    @cached_property
    def bos_id(self) -> int:
        """Id that begins a document for models trained with one; the end id where none is named."""
        return self._id_of("bos_token")

    @cached_property
    def end_of_turn_id(self) -> int:
        """Id that ends an assistant turn: `<SPECIAL_12>`, elsewhere the end of a document."""
        id_ = self._backend.token_to_id(END_OF_TURN)
        return self.eos_id if id_ is None else id_

    @cached_property
    def pad_id(self) -> int:
        """Id that fills unused places."""
        return self._id_of("pad_token")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Bytes that each id stands for, b"" for special tokens.

        Raises: DataError if the tokenizer is not a byte-level one.
        """
        if not isinstance(self._backend.decoder, tokenizers.decoders.ByteLevel):
            raise DataError("the tokenizer is not byte-level: bytes of single tokens are unknown")
        added = self._backend.get_added_tokens_decoder()
        table = [b""] * self.vocab_size
        for text, id_ in self._backend.get_vocab(with_added_tokens=False).items():
            table[id_] = (
                bytes(map(_BYTE_OF_CHARACTER.__getitem__, text)) if id_ not in added else b""
            )
        for id_, token in added.items():
            table[id_] = b"" if token.special else token.content.encode()
        return table

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special-token strings in it become special tokens."""
        return _ids_of(self._backend, [text])[0]

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text taken literally: no special token can come out."""
        return _ids_of(self._plain_backend, [text])[0]

    def encode_plain_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `encode_plain` of many texts, on all cores."""
        return _ids_of(self._plain_backend, texts)

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """Return a conversation as the text that the chat template makes of it.

        `continue_final_message` leaves the final message open and implies no generation prompt.
        Raises: RequestError if there is no template or it refuses the conversation.
        """
        return self._chat.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
            continue_final_message=continue_final_message,
        )

    def encode_conversation(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Return the ids of a conversation in which only the template can put special tokens.

        Equals `encode(render(...))` unless a message spells a special token: that stays plain
        text here.
        Raises: RequestError as `render` does.
        """
        segments = self._chat.segments(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
            continue_final_message=continue_final_message,
        )
        return [
            id_
            for segment in segments
            for id_ in ([segment] if isinstance(segment, int) else self.encode_plain(segment))
        ]

    @cached_property
    def _chat(self) -> ChatTemplate:
        if self.chat_template is None:
            raise RequestError(
                "this tokenizer has no chat template: send plain text, or use an aligned model"
            )
        return ChatTemplate(self.chat_template, self.special_ids, self._named)

    @cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        # A second object, because the switch is state of the tokenizer and threads share it.
        plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain

    def _id_of(self, name: str) -> int:
        if name == "pad_token" and name not in self._named:
            return self.end_of_turn_id
        id_ = self._backend.token_to_id(self._named.get(name, self._named["eos_token"]))
        assert id_ is not None  # checked when the tokenizer was made
        return id_


def _mark_special(backend: tokenizers.Tokenizer, texts: Set[str]) -> None:
    """Make tokens special under the ids they have: text could forge those that are not."""
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for text in sorted(texts):
        token = added.get(text) or tokenizers.AddedToken(text, normalized=False)
        if not token.special:
            token.special = True
            backend.add_special_tokens([token])


def _ids_of(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    try:
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    except (UnicodeEncodeError, TypeError):
        raise RequestError("text holds half of a surrogate pair: not valid Unicode") from None
    return [encoding.ids for encoding in encodings]


def _find_chat_template(path: Path, config: Mapping[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        return by_name.get("default")
    return template


def _token_text(entry: Any) -> str | None:
    return entry.get("content") if isinstance(entry, dict) else entry


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{file}: not a JSON object, but {type(value).__name__}")
    return value


def _bytes_by_character() -> dict[str, int]:
    """Return GPT-2's table: printable bytes are their own character, others count from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


_BYTE_OF_CHARACTER = _bytes_by_character()
