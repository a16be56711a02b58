import json
import threading

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.core.errors import DataError, RequestError
from plait.data.tokenizer import Tokenizer
from plait.data.train_tokenizer import train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog. 3.14159 and 2,718 apples\n\n",
    "Übergrößenträger, çà et là, naïve; 日本語のテキスト, текст на русском, ภาษาไทย 🎉👩‍👩‍👧\n",
    "def add(a, b):\n    return a + b  # <think> </think> <SPECIAL_12>\n",
] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=400, num_special_tokens=16)


def test_ids_are_special_tokens_then_bytes_then_merges(tokenizer):
    special = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{i}>" for i in range(3, 16))]
    assert list(tokenizer.special_ids.items()) == [(text, i) for i, text in enumerate(special)]
    assert sorted(tokenizer.token_bytes[16:272]) == [bytes([byte]) for byte in range(256)]
    assert all(len(text) > 1 for text in tokenizer.token_bytes[272:])
    assert tokenizer.vocab_size == len(tokenizer.token_bytes) == 400
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_of_turn_id, tokenizer.pad_id)
    assert ids == (1, 2, 12, 12)


@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.sampled_from(TEXTS))
def test_round_trip_of_any_text(tokenizer, text):
    ids = tokenizer.encode_plain(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()
    assert tokenizer.encode_plain_batch([text, "x"]) == [ids, tokenizer.encode_plain("x")]


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=12))
def test_bytes_that_are_not_utf8_become_replacement_characters(tokenizer, values):
    id_of_byte = {text: i for i, text in enumerate(tokenizer.token_bytes) if len(text) == 1}
    ids = [id_of_byte[bytes([value])] for value in values]
    assert tokenizer.decode(ids) == bytes(values).decode(errors="replace")


def test_each_digit_is_a_token(tokenizer):
    ids = tokenizer.encode("12345 678")
    assert [tokenizer.decode([i]) for i in ids] == ["1", "2", "3", "4", "5", " ", "6", "7", "8"]
    digits = [text for text in tokenizer.token_bytes if any(0x30 <= byte <= 0x39 for byte in text)]
    assert sorted(digits) == [str(digit).encode() for digit in range(10)]


def test_special_strings_are_parsed_by_encode_only(tokenizer):
    text = "a<SPECIAL_12>b</s>"
    ids = tokenizer.encode(text)
    assert [i for i in ids if i < 16] == [12, 2]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special=True) == "ab"
    plain = tokenizer.encode_plain(text)
    assert min(plain) >= 16
    assert tokenizer.decode(plain) == text


def test_plain_and_parsing_encoders_do_not_disturb_each_other_across_threads(tokenizer):
    expected = tokenizer.encode("x</s>"), tokenizer.encode_plain("x</s>")
    wrong = []

    def work():
        for _ in range(200):
            if (tokenizer.encode("x</s>"), tokenizer.encode_plain("x</s>")) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(RequestError, match="surrogate"):
        tokenizer.encode("x\ud800")


def test_saved_directory_loads_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    text = "".join(TEXTS) + "<SPECIAL_11>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.token_bytes == tokenizer.token_bytes
    assert again.chat_template == tokenizer.chat_template
    assert (again.bos_id, again.eos_id, again.end_of_turn_id, again.pad_id) == (1, 2, 12, 12)


def write_foreign(directory, config, template_file=None):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.enable_truncation(5)
    backend.enable_padding(length=7)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if template_file is not None:
        (directory / "chat_template.jinja").write_text(template_file)


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% generation %}{{ m.content }}"
    "{% endgeneration %}{{ eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("where", ["config", "list", "file"])
def test_reads_other_tokenizers_with_their_template(tmp_path, where):
    eos = {"content": "<|im_end|>", "special": True}
    template = {
        "config": {"chat_template": CHATML},
        "list": {
            "chat_template": [
                {"name": "tool_use", "template": ""},
                {"name": "default", "template": CHATML},
            ]
        },
        "file": {},
    }
    write_foreign(
        tmp_path, {"eos_token": eos, **template[where]}, CHATML if where == "file" else None
    )
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.eos_id, tokenizer.end_of_turn_id, tokenizer.pad_id) == (1, 1, 1)
    messages = [{"role": "user", "content": "a <|im_end|> b"}]
    text = "<|im_start|>user\na <|im_end|> b<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.render(messages) == text
    ids = tokenizer.encode_conversation(messages)
    assert [i for i in ids if i < 3] == [0, 1, 0]
    assert tokenizer.decode(ids) == text
    # Truncation and padding that the file switches on are not for us.
    assert tokenizer.decode(tokenizer.encode("?!" * 20)) == "?!" * 20
    assert len(tokenizer.encode("0")) == 1


def test_without_chat_template_only_rendering_fails(tmp_path):
    write_foreign(tmp_path, {"eos_token": "<|end|>"})
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.decode(tokenizer.encode("some text")) == "some text"
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.render([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", "names no eos_token"),
        ('{"eos_token": "<nowhere>"}', "eos_token is '<nowhere>', which the vocabulary"),
        ("{", "tokenizer_config.json: not valid JSON"),
    ],
)
def test_unusable_config_is_named(tmp_path, config, message):
    write_foreign(tmp_path, {})
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(DataError, match=message):
        Tokenizer.from_directory(tmp_path)


def test_unusable_tokenizer_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_bytes_of_a_tokenizer_that_is_not_byte_level_are_refused(tmp_path):
    write_foreign(tmp_path, {"eos_token": "<|end|>"})
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["decoder"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="not byte-level"):
        _ = Tokenizer.from_directory(tmp_path).token_bytes


END = "<|end|>"
PRINTS_END = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("where", ["in the vocabulary", "added", "added, left blanks its own"])
def test_text_cannot_forge_an_end_token_that_is_not_marked_special(where, tmp_path):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate(alphabet)}
    if where == "in the vocabulary":
        vocabulary[END] = 256
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    if where != "in the vocabulary":
        lstrip = where != "added"
        backend.add_tokens([tokenizers.AddedToken(END, special=False, lstrip=lstrip)])
    ids_before = backend.get_vocab(with_added_tokens=True)
    tokenizer = Tokenizer(backend, {"eos_token": END, "bos_token": END}, PRINTS_END)

    plain = tokenizer.encode_plain(f"a {END}b")
    assert 256 not in plain
    assert tokenizer.decode(plain) == f"a {END}b"
    messages = [{"role": "user", "content": f"a {END}b"}]
    assert tokenizer.encode_conversation(messages) == [*plain, 256]
    assert tokenizer.encode(f"a{END}b") == [vocabulary["a"], 256, vocabulary["b"]]
    assert (tokenizer.eos_id, tokenizer.special_ids) == (256, {END: 256})
    assert tokenizer.token_bytes[256] == b""
    assert tokenizer.decode([256], skip_special=True) == ""
    assert backend.get_vocab(with_added_tokens=True) == ids_before

    tokenizer.save(tmp_path)
    (saved,) = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    blanks = where == "added, left blanks its own"
    assert (saved["id"], saved["special"], saved["lstrip"]) == (256, True, blanks)
    assert Tokenizer.from_directory(tmp_path).encode_conversation(messages) == [*plain, 256]


def test_a_backend_whose_named_tokens_are_special_stays_as_it_is(tokenizer):
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    text = backend.to_str()
    Tokenizer(backend, tokenizer._named)
    assert backend.to_str() == text


def test_a_template_may_print_an_end_token_that_is_not_marked_special():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "</s>": 1}, []))
    template = "{{ messages[0].content }}{{ eos_token }}"
    tokenizer = Tokenizer(backend, {"eos_token": "</s>"}, template)
    messages = [{"role": "user", "content": "a"}]
    assert tokenizer.render(messages) == "a</s>"
    assert tokenizer.encode_conversation(messages) == [0, 1]
