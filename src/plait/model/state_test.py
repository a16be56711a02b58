import pytest
import torch

from plait.core.errors import CapacityError
from plait.model import mamba2
from plait.model.spec import ModelSpec
from plait.model.state import BLOCK_TOKENS, HybridState

F64 = torch.float64


def tokens_of(spec, *shape):
    return torch.randint(spec.vocab_size, shape, generator=torch.Generator().manual_seed(3))


def empty(spec, num_sequences, capacity=80, is_paged=False):
    if is_paged:
        return paged(spec, num_sequences, capacity)
    state = HybridState.empty(spec, num_sequences, capacity, dtype=F64)
    # What lies beyond a row's length, left by an earlier sequence, must not count.
    for tensor in (*state.key, *state.value):
        tensor.fill_(1e3)
    return state


def paged(spec, num_sequences, capacity):
    per_row = -(-capacity // BLOCK_TOKENS)
    num_blocks = 1 + num_sequences * per_row
    state = HybridState.paged(spec, num_sequences, num_blocks, capacity, dtype=F64)
    for tensor in (*state.conv, *state.ssm):
        tensor.fill_(torch.nan)
    for tensor in (*state.key, *state.value):
        tensor[1:] = torch.nan
    blocks = list(range(num_blocks - 1, 0, -1))
    for row in range(num_sequences):
        state.reset_row(row)
        state.assign(row, 0, blocks[row::num_sequences])
    return state


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=["M-M*-M", "M-M", "*-"])
def spec(request):
    return ModelSpec.preset("test", pattern=request.param)


PAGED = pytest.mark.parametrize("is_paged", [False, True])


@PAGED
@pytest.mark.parametrize("chunks", [(63,), (1, 1, 1, 60), (17, 2, 31, 3, 10), (3, *[1] * 60)])
def test_chunks_and_steps_equal_forward(random_model, spec, chunks, is_paged):
    model = random_model(spec)
    tokens = tokens_of(spec, 2, 63)
    state = empty(spec, 2, is_paged=is_paged)
    logits, start = [], 0
    for size in chunks:
        logits.append(model(tokens[:, start : start + size], state=state))
        start += size
    assert_same(torch.cat(logits, 1), model(tokens).detach())
    assert state.lengths.tolist() == [63, 63]


@PAGED
def test_ragged_rows_in_dense_slots_equal_forward(random_model, spec, is_paged):
    model = random_model(spec)
    tokens = tokens_of(spec, 4, 70)
    want = model(tokens).detach()
    slots = empty(spec, 6, is_paged=is_paged)
    lengths = [37, 1, 2, 50]
    for row, length in enumerate(lengths):
        logits = model(tokens[row : row + 1, :length], state=slots.rows(row, row + 1))
        assert_same(logits[0], want[row, :length])

    def advance(num_tokens):
        at = [slice(n, n + num_tokens) for n in lengths]
        chunk = torch.stack([tokens[row, span] for row, span in zip(running, at, strict=True)])
        logits = model(chunk, state=slots.rows(0, len(running)))
        for slot, (row, span) in enumerate(zip(running, at, strict=True)):
            assert_same(logits[slot], want[row, span])
        lengths[:] = [n + num_tokens for n in lengths]

    running = [0, 1, 2, 3]
    for num_tokens in (1, 1, 5, 1):
        advance(num_tokens)
    # Sequence 1 ends: the last one moves into its slot, the others go on.
    slots.swap_rows(3, 1)
    running, lengths = [0, 3, 2], [lengths[0], lengths[3], lengths[2]]
    for num_tokens in (1, 3, 1):
        advance(num_tokens)
    assert slots.lengths.tolist() == [*lengths, 9, 0, 0]


@PAGED
def test_packed_documents_continue_their_rows(random_model, spec, is_paged):
    model = random_model(spec)
    tokens = tokens_of(spec, 3, 60)
    want = model(tokens).detach()
    state = empty(spec, 3, is_paged=is_paged)
    done = [0, 0, 0]
    for new in ([5, 1, 20], [1, 30, 2], [1, 1, 1], [0, 4, 1], [33, 9, 8]):
        parts = [tokens[s, n : n + m] for s, (n, m) in enumerate(zip(done, new, strict=True))]
        bounds = torch.tensor([0, *new]).cumsum(0).int()
        logits = model(torch.cat(parts)[None], cu_seqlens=bounds, state=state)[0]
        spans = [want[s, n : n + m] for s, (n, m) in enumerate(zip(done, new, strict=True))]
        assert_same(logits, torch.cat(spans))
        done = [n + m for n, m in zip(done, new, strict=True)]
    assert state.lengths.tolist() == done


def test_a_reset_row_starts_from_nothing(random_model, spec):
    model = random_model(spec)
    tokens = tokens_of(spec, 2, 20)
    state = empty(spec, 2)
    model(tokens, state=state)
    state.reset_row(0)
    first = model(tokens[:1], state=state.rows(0, 1))
    assert_same(first, model(tokens[:1]).detach())
    assert state.lengths.tolist() == [20, 20]


def test_a_stored_row_goes_on_in_another_with_shared_blocks(random_model, spec):
    model = random_model(spec)
    tokens, common = tokens_of(spec, 2, 70), 2 * BLOCK_TOKENS
    tokens[1, :common] = tokens[0, :common]
    state, store = paged(spec, 2, 96), HybridState.empty(spec, 1, 0, dtype=F64)
    model(tokens[:1, :common], state=state.rows(0, 1))
    state.copy_row_to(0, store, 0)
    model(tokens[:1, common:], state=state.rows(0, 1))
    state.reset_row(1)
    store.copy_row_to(0, state, 1)
    state.assign(1, 0, state.tables[0, :2].tolist(), are_new=False)
    state.assign(1, 2, [5])
    got = model(tokens[1:, common:], state=state.rows(1, 2))
    assert_same(got, model(tokens[1:]).detach()[:, common:])
    assert state.lengths.tolist() == [70, 70]


def test_a_state_leaves_no_trace_for_autograd(random_model, spec):
    model = random_model(spec)
    tokens = tokens_of(spec, 1, 9)
    state = empty(spec, 1)
    logits = model(tokens[:, :6], state=state)
    assert not logits.requires_grad
    for tensor in (*state.conv, *state.ssm, *state.key, *state.value):
        assert not tensor.requires_grad
    with torch.inference_mode():
        rest = model(tokens[:, 6:], state=state)
    assert_same(rest.clone(), model(tokens).detach()[:, 6:])


def test_a_full_state_says_what_to_do(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec)
    tokens = tokens_of(spec, 2, 12)
    state = empty(spec, 2, capacity=10)
    model(tokens[:, :9], state=state)
    with pytest.raises(CapacityError, match=r"12 tokens, its state has room for 10.*more room"):
        model(tokens[:, 9:], state=state)
    assert state.lengths.tolist() == [9, 9]


def test_wrong_number_of_rows_is_refused(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec)
    with pytest.raises(ValueError, match="2 sequences of tokens, but 3 rows of state"):
        model(tokens_of(spec, 2, 4), state=empty(spec, 3))


@PAGED
@pytest.mark.parametrize("num_tokens", [1, 40])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mamba_num_heads": 64}, r"3 tensors `conv` have shapes \[\(1, 156, 3\)\]"),
        ({"conv_kernel": 3}, ". tensors `conv`"),
        ({"mamba_num_heads": 3, "mamba_head_dim": 20, "num_groups": 1}, ". tensors `conv`"),
        ({"mamba_num_heads": 12, "mamba_head_dim": 5}, ". tensors `ssm`"),
        (
            {"num_key_value_heads": 1},
            r". tensors `key`.* needs \[\(\d+, \d+, 1, 16\)\]; make it with",
        ),
        ({"attention_head_dim": 8}, ". tensors `key`"),
        ({"pattern": "M-M*-"}, "3 tensors `conv`.* the model has 2 layers"),
        ({"pattern": "M-M--M"}, "1 tensors `key`.* the model has 0 layers"),
    ],
)
def test_the_state_of_another_model_is_refused(random_model, change, message, num_tokens, is_paged):
    spec = ModelSpec.preset("test")
    model = random_model(ModelSpec.preset("test", **change), torch.float32)
    with pytest.raises(ValueError, match=f"state is not one of this model: its {message}"):
        model(tokens_of(spec, 1, num_tokens), state=empty(spec, 1, is_paged=is_paged))


def test_dtypes_sizes_and_bytes():
    spec = ModelSpec.preset("test")
    state = HybridState.empty(spec, 3, 16, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in state.ssm} == {torch.float32}
    assert {tensor.dtype for tensor in state.conv + state.key} == {torch.bfloat16}
    per_row = 3 * (156 * 3 * 2 + 6 * 10 * 24 * 4) + 2 * 2 * 16 * 16 * 2
    assert state.num_bytes == 3 * per_row
    assert state.capacity_tokens == 16
    no_attention = HybridState.empty(ModelSpec.preset("test", pattern="M-"), 1, 4)
    assert no_attention.capacity_tokens is None


def test_bfloat16_steps_follow_forward(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec, torch.float32)
    model.compute_dtype = torch.bfloat16
    tokens = tokens_of(spec, 2, 40)
    state = HybridState.empty(spec, 2, 40, dtype=torch.bfloat16)
    logits = [model(tokens[:, :20], state=state)]
    logits += [model(tokens[:, t : t + 1], state=state) for t in range(20, 40)]
    want = model(tokens).detach()
    error = (torch.cat(logits, 1) - want).square().mean().sqrt() / want.std()
    assert error < 0.03


@pytest.mark.parametrize("tile_tokens", [2, 7, 64])
def test_tiles_of_a_long_prompt_do_not_matter(random_model, spec, tile_tokens, monkeypatch):
    monkeypatch.setattr(mamba2, "TILE_TOKENS", tile_tokens)
    model = random_model(spec)
    tokens = tokens_of(spec, 2, 63)
    want = model(tokens).detach()  # with gradients: not in tiles
    with torch.no_grad():
        assert_same(model(tokens), want)
    state = empty(spec, 2)
    assert_same(model(tokens[:, :40], state=state), want[:, :40])
    assert_same(model(tokens[:, 40:], state=state), want[:, 40:])
