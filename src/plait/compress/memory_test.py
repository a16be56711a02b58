import pytest
import torch

from plait.compress.memory import Workload, memory
from plait.compress.throughput import Hardware, largest_batch, throughput
from plait.core.errors import ConfigError
from plait.core.sizes import GIB
from plait.engine.memory_plan import plan_for_model
from plait.engine.runner import Runner
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


def test_the_engine_allocates_as_much(allocated):
    """Weights, states and a prefill by the engine's own runner: within 3 % of the sum of terms."""
    spec = ModelSpec.preset(
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
    workload = Workload(
        context_tokens=2048,
        batch=48,
        prefill_chunk_tokens=128,
        dtype="float32",
        kv_dtype="float32",
        fixed="0B",
    )
    model = init_weights(HybridLM(spec), seed=0)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    plan = plan_for_model(
        model,
        2**30,
        max_num_seqs=workload.batch,
        max_context=workload.context_tokens,
        prefix_cache=False,
    )
    runner = Runner(model, plan)
    runner.start(0, None)
    runner.assign(0, 0, range(1, 1 + workload.prefill_chunk_tokens // BLOCK_TOKENS))

    def read_a_chunk():
        with torch.inference_mode():
            runner.prefill(0, [[5] * workload.prefill_chunk_tokens])

    measured = weights + runner.state.num_bytes + allocated(read_a_chunk)
    assert measured == pytest.approx(memory(spec, workload).total, rel=0.03)


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="no size"):
        Workload.parse({"fixed": "much"}, "here")


def test_the_ceiling_of_the_report_s_hardware():
    """219 tok/s at batch 8: computed by hand in the notes; the report measured 156."""
    found = throughput(NINE, Hardware(), Workload(), batch=8)
    assert found.tokens_per_s == pytest.approx(219, rel=0.01)


def test_the_batch_that_fits_an_a10g():
    short = Hardware(input_tokens=8192, output_tokens=16_384)
    assert largest_batch(NINE, short, Workload(fixed="0.7GiB", prefill_chunk_tokens=512)) == 7
    assert largest_batch(TWELVE, short, Workload()) == 0
    assert throughput(TWELVE, short, Workload()).tokens_per_s == 0.0
