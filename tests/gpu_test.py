"""What a GPU must agree with the CPU on. `make test-gpu` runs this file; CI has no GPU."""

import pytest
import torch

from plait.engine.engine import Engine
from plait.engine.request import SamplingParams
from plait.kernels.attention import causal_attention
from plait.kernels.conv import causal_conv
from plait.kernels.ssd import ssd_scan
from plait.kernels.ssd_naive import ssd_scan_naive
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.model.state import HybridState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CU_SEQLENS = torch.tensor([0, 1, 64, 257], dtype=torch.int32)


def scan_inputs(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    heads, width, groups, state = 8, 80, 2, 16
    x, b, c = (
        normal(1, 257, heads, width),
        normal(1, 257, groups, state),
        normal(1, 257, groups, state),
    )
    dt, a, d = normal(1, 257, heads).exp() * 0.05, -normal(heads).exp(), normal(heads)
    return [t.to(device, dtype).requires_grad_() for t in (x, dt, a, b, c, d)]


def test_scan_and_its_gradients_equal_the_recurrence():
    reference = scan_inputs("cpu", torch.float64)
    fast = scan_inputs("cuda", torch.float32)
    want = ssd_scan_naive(*reference, cu_seqlens=CU_SEQLENS)
    got = ssd_scan(*fast, cu_seqlens=CU_SEQLENS.cuda())
    for output, expected in zip(got, want, strict=True):
        torch.testing.assert_close(output.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    want.y.square().sum().backward()
    got.y.square().sum().backward()
    for ours, theirs in zip(fast, reference, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        scale = theirs.grad.abs().max()
        assert (ours.grad.cpu().double() - theirs.grad).abs().max() < 1e-4 * scale


def test_convolution_and_attention_equal_the_cpu():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 257, 96), torch.randn(96, 4), torch.randn(96)
    want = causal_conv(x, weight, bias, cu_seqlens=CU_SEQLENS)
    got = causal_conv(x.cuda(), weight.cuda(), bias.cuda(), cu_seqlens=CU_SEQLENS.cuda())
    torch.testing.assert_close(got[0].cpu(), want[0], rtol=1e-5, atol=1e-5)
    q, k, v = torch.randn(1, 257, 8, 64), torch.randn(1, 257, 2, 64), torch.randn(1, 257, 2, 64)
    want = causal_attention(q, k, v, cu_seqlens=CU_SEQLENS)
    got = causal_attention(q.cuda(), k.cuda(), v.cuda(), cu_seqlens=CU_SEQLENS.cuda())
    torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_equals_forward(dtype):
    model = init_weights(HybridLM(ModelSpec.preset("tiny")), 0).to("cuda", dtype)
    tokens = torch.randint(0, 2048, (3, 70), device="cuda")
    state = HybridState.empty(model.spec, 3, 70, dtype=dtype, device="cuda")
    with torch.no_grad():
        want = model(tokens)
        parts = [model(tokens[:, :33], state=state)]
        parts += [model(tokens[:, t : t + 1], state=state) for t in range(33, 70)]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    error = (torch.cat(parts, 1) - want).abs().max() / want.abs().max()
    assert error < tolerance


def test_a_training_step_equals_the_cpu():
    from plait.data.loader import PackedBatch
    from plait.train.losses import next_token_loss

    tokens = torch.randint(0, 2048, (1, 257), generator=torch.Generator().manual_seed(1))
    batch = PackedBatch(tokens, tokens.roll(-1), torch.ones(1, 257), CU_SEQLENS)
    gradients = []
    for device in ("cpu", "cuda"):
        model = init_weights(HybridLM(ModelSpec.preset("tiny")), 0).to(device)
        next_token_loss(model, batch).total.backward()
        gradients.append(
            {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        )
    for name, want in gradients[0].items():
        error = (gradients[1][name] - want).abs().max() / want.abs().max().clamp_min(1e-6)
        assert error < 1e-3, name


def test_engine_generates(run_directory):
    directory = run_directory / "05_sft" / "model"
    prompt = [{"role": "user", "content": "Largest of A, B?"}]
    params = SamplingParams(max_tokens=16, temperature=0.0)
    answers = [
        Engine.from_path(directory, device=d).generate([prompt], params)[0] for d in ("cpu", "cuda")
    ]
    assert answers[0].token_ids[0] == answers[1].token_ids[0]
