from contextlib import nullcontext

import pytest
import torch

from plait.compress.memory import Workload, memory
from plait.compress.throughput import Hardware, largest_batch, throughput
from plait.core.errors import ConfigError
from plait.core.sizes import GIB
from plait.engine.memory_plan import plan_for_model
from plait.engine.runner import Runner
from plait.kernels import native
from plait.kernels.processor import product_dtype
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.model.state import BLOCK_TOKENS, HybridState

NINE, TWELVE = ModelSpec.preset("nano-9b-v2"), ModelSpec.preset("nano-12b-v2")
BUDGET = int(19.66 * GIB)


def test_the_report_s_parent_does_not_fit_and_its_child_does():
    workload = Workload(context_tokens=131_072, batch=1)
    assert memory(NINE, workload).total <= BUDGET < memory(TWELVE, workload).total


def test_the_report_s_terms():
    terms = memory(NINE, Workload())
    assert terms.kv == 2 * GIB
    assert terms.ssm == 135 * 2**20
    assert terms.weights == 2 * 8_888_227_328
    counted = terms.weights + terms.kv + terms.ssm + terms.conv
    assert counted / GIB == pytest.approx(18.69, abs=0.01)
    assert terms.total == sum(terms)


@pytest.mark.parametrize("spec", [NINE, TWELVE])
def test_weights_and_states_are_what_is_allocated(spec):
    """Whole-size models and states on the meta device have every byte but its content."""
    workload = Workload(context_tokens=4096, batch=3)
    terms = memory(spec, workload)
    model = HybridLM(spec, dtype=torch.bfloat16, device="meta")
    assert terms.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    state = HybridState.empty(spec, 3, 4096, dtype=torch.bfloat16, device="meta")
    assert terms.kv + terms.ssm + terms.conv == state.num_bytes


SMALL = ModelSpec.preset(
    "nano-9b-v2",
    pattern="M-M*-M*-",
    hidden_size=256,
    intermediate_size=1024,
    vocab_size=4096,
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_head_dim=64,
    mamba_num_heads=16,
    mamba_head_dim=32,
)


def workload_of(batch, prefill_tokens, dtype="float32"):
    return Workload(
        context_tokens=2048,
        batch=batch,
        prefill_chunk_tokens=prefill_tokens,
        dtype=dtype,
        kv_dtype=dtype,
        device="cpu",
        fixed="0B",
    )


def held_by_an_engine(spec, workload, allocated):
    """Return bytes of weights, of the engine's pools, and the most while a prompt ends."""
    dtype = getattr(torch, workload.dtype)
    model = init_weights(HybridLM(spec, dtype=dtype), seed=0)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    num_tokens, context = workload.prefill_chunk_tokens, workload.context_tokens
    plan = plan_for_model(
        model, 2**30, max_num_seqs=workload.batch, max_context=context, prefix_cache=False
    )
    runner = Runner(model, plan)
    # Several rows read prompts of unequal length, which are packed; the terms are those of one
    # row that has them all.
    lengths = [num_tokens] if workload.batch == 1 else [num_tokens // 8, num_tokens * 7 // 8]
    for row, length in enumerate(lengths):
        runner.start(row, None)
        runner.assign(row, 0, range(1, 1 + context // BLOCK_TOKENS))
        runner.state.lengths[row] = context - length
    pieces = [[5] * length for length in lengths]
    # Not in inference mode, where attention would hide what it does inside.
    return weights, runner.state.num_bytes, allocated(lambda: runner.prefill(0, pieces))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("num_tokens", [128, 512, 2048])
def test_the_terms_are_what_an_engine_holds(allocated, num_tokens, batch, dtype):
    """The engine adds one block that nobody owns, and tables."""
    if dtype == "bfloat16" and product_dtype(torch.bfloat16, torch.device("cpu")) != torch.bfloat16:
        pytest.skip("this processor multiplies bfloat16 as copies in float32")
    workload = workload_of(batch, num_tokens, dtype)
    terms = memory(SMALL, workload)
    weights, pools, activations = held_by_an_engine(SMALL, workload, allocated)
    assert weights == terms.weights
    assert pools == pytest.approx(terms.kv + terms.states, rel=0.03)
    assert activations == pytest.approx(terms.activations, rel=0.12)
    assert weights + pools + activations == pytest.approx(terms.total, rel=0.03)


@pytest.mark.parametrize("form", [nullcontext, native.off], ids=["as built", "torch"])
@pytest.mark.parametrize("pattern", ["M", "*", "-"])
def test_every_kind_of_layer_takes_its_activations(allocated, pattern, form):
    spec, workload = SMALL.model_copy(update={"pattern": pattern}), workload_of(1, 512)
    with form():
        *_, activations = held_by_an_engine(spec, workload, allocated)
        assert activations == pytest.approx(memory(spec, workload).activations, rel=0.12)


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="no size"):
        Workload.parse({"fixed": "much"}, "here")


def test_the_ceiling_of_the_report_s_hardware():
    """219 tok/s at batch 8: computed by hand in the notes; the report measured 156."""
    found = throughput(NINE, Hardware(), Workload(), batch=8)
    assert found.tokens_per_s == pytest.approx(219, rel=0.01)


def test_the_batch_that_fits_an_a10g():
    short = Hardware(input_tokens=8192, output_tokens=16_384)
    assert largest_batch(NINE, short, Workload(fixed="0.7GiB", prefill_chunk_tokens=512)) == 6
    assert largest_batch(NINE, short, Workload(device="cpu")) == 7  # its scan takes less
    assert largest_batch(TWELVE, short, Workload()) == 0
    assert throughput(TWELVE, short, Workload()).tokens_per_s == 0.0
