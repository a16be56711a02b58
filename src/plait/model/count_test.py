import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plait.core.sizes import MIB
from plait.kernels import native
from plait.kernels.ssd_naive import SSDOutput
from plait.model import mamba2
from plait.model.count import (
    conv_bytes_per_sequence,
    describe,
    flops_per_token,
    kv_bytes_per_token,
    prefill_bytes,
    ssm_bytes_per_sequence,
    training_flops_per_token,
)
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.model.state import HybridState


def test_memory_of_the_released_models():
    nine, twelve = ModelSpec.preset("nano-9b-v2"), ModelSpec.preset("nano-12b-v2")
    assert ssm_bytes_per_sequence(nine) == 135 * MIB
    assert ssm_bytes_per_sequence(twelve) == 140 * MIB
    assert kv_bytes_per_token(nine) == 16 * 1024
    assert kv_bytes_per_token(twelve) == 24 * 1024
    assert conv_bytes_per_sequence(nine) / MIB == pytest.approx(1.9, abs=0.01)
    assert conv_bytes_per_sequence(twelve) / MIB == pytest.approx(2.0, abs=0.04)


def test_state_bytes_are_those_of_a_state():
    spec = ModelSpec.preset("test")
    state = HybridState.empty(spec, 3, 50, dtype=torch.bfloat16)
    fixed = ssm_bytes_per_sequence(spec) + conv_bytes_per_sequence(spec)
    assert state.num_bytes == 3 * (fixed + 50 * kv_bytes_per_token(spec))


def test_activations_of_a_prefill():
    nine = ModelSpec.preset("nano-9b-v2")
    of = {"context_tokens": 131072, "is_packed": False, "device": "cpu"}
    with native.off():
        for num_tokens, gib in ((512, 0.134), (2048, 0.218), (8192, 0.502)):
            assert prefill_bytes(nine, num_tokens, **of) / 2**30 == pytest.approx(gib, abs=0.001)
    # what is brought together of a long context is one head's, and a mask of bounded size
    without = nine.model_copy(update={"pattern": "*"})
    short, long = (prefill_bytes(without, 512, context) for context in (131072, 262144))
    assert long - short == 2 * 2 * 131072 * 128


def test_flops_equal_what_torch_counts(monkeypatch):
    # The counter sees matrix products only, and a scan's products depend on its chunk length: the
    # scan is left out on both sides, and so is the convolution.
    spec = ModelSpec.preset("test")
    # in float64, for the counter does not know the products that float32 takes from oneDNN
    model = init_weights(HybridLM(spec, dtype=torch.float64), 0)
    num_tokens = 64
    monkeypatch.setattr(mamba2, "ssd_scan", lambda x, *_, **__: SSDOutput(x, x.new_zeros(0)))
    tokens = torch.zeros(1, num_tokens, dtype=torch.int64)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(tokens)
    elementwise = 2 * spec.conv_kernel * spec.conv_dim + 5 * spec.d_inner * spec.state_size
    # The plain form of attention computes the full square, as if every token saw all.
    want = flops_per_token(spec, num_tokens) - spec.num_mamba_layers * elementwise
    assert counter.get_total_flops() == num_tokens * want


def test_training_flops_are_six_per_parameter_in_short_sequences():
    spec = ModelSpec.preset("nano-12b-v2")
    active = spec.num_parameters - spec.vocab_size * spec.hidden_size
    assert training_flops_per_token(spec, 1) == pytest.approx(6 * active, rel=0.01)
    per_context = 3 * 4 * spec.num_attention_layers * 40 * 128 / 2
    growth = training_flops_per_token(spec, 8193) - training_flops_per_token(spec, 1)
    assert growth == pytest.approx(8192 * per_context)


def test_description_has_the_facts():
    facts = dict(describe(ModelSpec.preset("nano-9b-v2")))
    assert facts["parameters"] == "8,888,227,328"
    assert facts["layers"] == "56 = 27 Mamba-2 + 25 feed-forward + 4 attention"
    assert facts["weights, bfloat16"] == "16.56 GiB"
    assert facts["KV cache per token, bfloat16"] == "16 KiB"
    assert facts["SSM state per sequence, float32"] == "135 MiB"
    assert describe(ModelSpec.preset("test", pattern="M-"))
