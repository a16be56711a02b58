import inspect
import math

import pytest
import torch

from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

# ---- the model once more, one token after another, from its published definition ----


def reference_logits(spec, weights, tokens):
    """Logits (T, V) of one sequence in float64; shares no code with the model or its kernels."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = w["backbone.embeddings.weight"][tokens]
    for index, letter in enumerate(spec.pattern):
        prefix = f"backbone.layers.{index}."
        layer = {n.removeprefix(prefix): t for n, t in w.items() if n.startswith(prefix)}
        u = _rms(x, spec.norm_eps) * layer.pop("norm.weight")
        mixer = {n.removeprefix("mixer."): t for n, t in layer.items()}
        x = x + {"M": _mamba, "*": _attend, "-": _feed}[letter](spec, mixer, u)
    return _rms(x, spec.norm_eps) * w["backbone.norm_f.weight"] @ w["lm_head.weight"].T


def _rms(x, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def _linear(mixer, name, x):
    return x @ mixer[f"{name}.weight"].T + mixer.get(f"{name}.bias", 0.0)


def _feed(spec, mixer, u):
    return _linear(mixer, "down_proj", _linear(mixer, "up_proj", u).clamp(min=0) ** 2)


def _attend(spec, mixer, u):
    Hq, Hk, E = spec.num_attention_heads, spec.num_key_value_heads, spec.attention_head_dim
    q = _linear(mixer, "q_proj", u).view(-1, Hq, E)
    k = _linear(mixer, "k_proj", u).view(-1, Hk, E)
    v = _linear(mixer, "v_proj", u).view(-1, Hk, E)
    heads = []
    for j in range(Hq):
        group = j // (Hq // Hk)
        scores = q[:, j] @ k[:, group].T / math.sqrt(E)
        for t in range(len(u)):
            scores[t, t + 1 :] = -math.inf
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(weights @ v[:, group])
    return _linear(mixer, "o_proj", torch.cat(heads, -1))


def _mamba(spec, mixer, u):
    H, P, G, N = spec.mamba_num_heads, spec.mamba_head_dim, spec.num_groups, spec.state_size
    W, inner = spec.conv_kernel, spec.d_inner
    group_of_head = [j // (H // G) for j in range(H)]
    A = -mixer["A_log"].exp()
    inputs = torch.zeros(W, spec.conv_dim, dtype=torch.float64)
    h = torch.zeros(H, P, N, dtype=torch.float64)
    outputs = []
    for row in _linear(mixer, "in_proj", u):
        z, xbc, dt = row[:inner], row[inner:-H], row[-H:]
        inputs = torch.cat([inputs[1:], xbc[None]])
        c = (inputs * mixer["conv1d.weight"][:, 0].T).sum(0) + mixer.get("conv1d.bias", 0.0)
        c = c / (1 + (-c).exp())
        x, B, C = c[:inner].view(H, P), c[inner : -G * N], c[-G * N :]
        B, C = B.view(G, N)[group_of_head], C.view(G, N)[group_of_head]  # (H, N)
        dt = (1 + (dt + mixer["dt_bias"]).exp()).log()
        dt = dt.clamp(*spec.time_step_limit)
        h = (dt * A).exp()[:, None, None] * h + (dt[:, None] * x)[:, :, None] * B[:, None]
        y = (h * C[:, None]).sum(-1) + mixer["D"][:, None] * x
        y = (y.reshape(-1) * z / (1 + (-z).exp())).view(G, -1)
        outputs.append(_rms(y, spec.norm_eps).reshape(-1) * mixer["norm.weight"])
    return _linear(mixer, "out_proj", torch.stack(outputs))


def tokens_of(spec, *shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(spec.vocab_size, shape, generator=generator)


SHAPES = {
    "all kinds": {},
    "mamba only": {"pattern": "MM"},
    "attention only": {"pattern": "**-", "num_key_value_heads": 1},
    "wide heads": {"pattern": "M*M", "mamba_num_heads": 4, "mamba_head_dim": 80},
    "many groups": {"pattern": "MM-", "mamba_num_heads": 12, "num_groups": 4},
    "clamped steps, biases": {
        "pattern": "M-M",
        "time_step_limit": (0.01, 0.3),
        "use_bias": True,
        "mlp_bias": True,
        "use_conv_bias": False,
        "conv_kernel": 3,
        "norm_eps": 1e-3,
    },
}


@pytest.mark.parametrize("num_tokens", [1, 63, 131])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_recurrence(random_model, shape, num_tokens):
    spec = ModelSpec.preset("test", **SHAPES[shape])
    model = random_model(spec)
    tokens = tokens_of(spec, num_tokens)
    with torch.no_grad():
        got = model(tokens[None])[0]
        want = reference_logits(spec, dict(model.named_parameters()), tokens)
    assert got.dtype == torch.float64
    assert want.std() > 0.5
    assert (got - want).abs().max() <= 1e-9 * want.abs().max()


def test_rows_of_a_batch_are_independent(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec)
    tokens = tokens_of(spec, 3, 33)
    with torch.no_grad():
        together = model(tokens)
        alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_logits_for_picks_flat_positions(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec, torch.float32)
    tokens = tokens_of(spec, 2, 9)
    positions = torch.tensor([17, 0, 8])
    with torch.no_grad():
        full, picked = model(tokens), model(tokens, logits_for=positions)
    assert picked.shape == (3, spec.vocab_size)
    torch.testing.assert_close(picked, full.view(18, -1)[positions])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([5, 6, 7]), r"torch.int64 of shape \(3,\).*\(B, T\).*add a batch axis"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"shape \(1, 2, 3\)"),
        (torch.zeros(1, 3), r"tokens are torch.float32 of shape \(1, 3\); give token ids as int"),
        (torch.zeros(1, 0, dtype=torch.int64), r"shape \(1, 0\).*at least one"),
        (torch.zeros(0, 3, dtype=torch.int64), r"shape \(0, 3\).*at least one"),
    ],
)
def test_what_is_no_batch_of_token_ids_is_refused(random_model, tokens, message):
    model = random_model(ModelSpec.preset("test"), torch.float32)
    # without the checks of types that only tests have
    hidden = inspect.unwrap(HybridLM.hidden)
    with pytest.raises(ValueError, match=message):
        hidden(model, tokens)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        hidden(model, tokens)


# ---- packed rows ----


def packed_documents(spec, lengths):
    """Documents with disjoint sets of tokens, so that embedding rows tell whose gradient it is."""
    share = spec.vocab_size // len(lengths)
    generator = torch.Generator().manual_seed(5)
    documents = [
        torch.randint(i * share, (i + 1) * share, (n,), generator=generator)
        for i, n in enumerate(lengths)
    ]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return documents, bounds, share


def test_packed_equals_separate_forward_and_backward(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec)
    documents, bounds, _ = packed_documents(spec, [1, 37, 2, 63])
    upstream = torch.randn(103, spec.vocab_size, dtype=torch.float64)

    packed = model(torch.cat(documents)[None], cu_seqlens=bounds)[0]
    (packed * upstream).sum().backward()
    packed_grads = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)

    separate = torch.cat([model(document[None])[0] for document in documents])
    (separate * upstream).sum().backward()

    torch.testing.assert_close(packed, separate, rtol=1e-10, atol=1e-10)
    for got, parameter in zip(packed_grads, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-9)


def test_the_last_token_of_a_document_moves_nothing_of_its_neighbours(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec, torch.float32)
    documents, bounds, share = packed_documents(spec, [29, 33, 1, 17])
    changed = [document.clone() for document in documents]
    changed[1][-1] = share if documents[1][-1] != share else share + 1

    results = []
    for parts in (documents, changed):
        model.zero_grad(set_to_none=True)
        logits = model(torch.cat(parts)[None], cu_seqlens=bounds)[0]
        logits.square().sum().backward()
        results.append((logits.detach(), model.backbone.embeddings.weight.grad.clone()))
    (logits, grads), (new_logits, new_grads) = results

    start, stop = int(bounds[1]), int(bounds[2])
    neighbours = torch.ones(len(logits), dtype=torch.bool)
    neighbours[start:stop] = False
    assert torch.equal(logits[neighbours], new_logits[neighbours])
    assert not torch.equal(logits[stop - 1], new_logits[stop - 1])
    others = torch.ones(spec.vocab_size, dtype=torch.bool)
    others[share : 2 * share] = False
    assert torch.equal(grads[others], new_grads[others])
    assert not torch.equal(grads[~others], new_grads[~others])


def test_no_gradient_crosses_documents(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec, torch.float32)
    documents, bounds, share = packed_documents(spec, [29, 33, 17])
    logits = model(torch.cat(documents)[None], cu_seqlens=bounds)[0]
    logits[bounds[1] : bounds[2]].square().sum().backward()
    grad = model.backbone.embeddings.weight.grad
    assert grad[share : 2 * share].abs().max() > 0
    assert grad[:share].abs().max() == 0
    assert grad[2 * share :].abs().max() == 0


# ---- precision and initialisation ----


def test_bfloat16_activations_over_float32_weights(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec, torch.float32)
    tokens = tokens_of(spec, 2, 65)
    exact = model(tokens).detach()
    model.compute_dtype = torch.bfloat16
    hidden = model.hidden(tokens)
    assert hidden.dtype == torch.bfloat16
    logits = model(tokens)
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    error = (logits.detach() - exact).square().mean().sqrt() / exact.std()
    assert error < 0.03


def test_float64_activations_over_float32_weights_are_exact(random_model):
    spec = ModelSpec.preset("test")
    model = random_model(spec, torch.float32)
    tokens = tokens_of(spec, 41)
    model.compute_dtype = torch.float64
    with torch.no_grad():
        got = model(tokens[None])[0]
        want = reference_logits(spec, dict(model.named_parameters()), tokens)
    assert (got - want).abs().max() <= 1e-9 * want.abs().max()


def test_initialisation_is_reproducible_and_as_published():
    spec = ModelSpec.preset("test", pattern="M-*M")
    model = init_weights(HybridLM(spec), seed=7)
    again = init_weights(HybridLM(spec, dtype=torch.float64), seed=7)
    other = init_weights(HybridLM(spec), seed=8)
    weights, same, different = (m.state_dict() for m in (model, again, other))
    for name, weight in weights.items():
        assert torch.equal(weight.double(), same[name]), name
    mixer = "backbone.layers.0.mixer."
    assert not torch.equal(weights[mixer + "dt_bias"], different[mixer + "dt_bias"])
    assert not torch.equal(
        weights[mixer + "in_proj.weight"], weights["backbone.layers.3.mixer.in_proj.weight"]
    )

    assert weights["backbone.layers.1.mixer.up_proj.weight"].std() == pytest.approx(0.15, rel=0.1)
    assert weights["backbone.embeddings.weight"].std() == pytest.approx(0.15, rel=0.1)
    torch.testing.assert_close(weights[mixer + "A_log"].exp(), torch.arange(1.0, 7.0))
    assert weights[mixer + "D"].eq(1).all()
    dt = torch.nn.functional.softplus(weights[mixer + "dt_bias"])
    assert dt.min() >= 0.00099
    assert dt.max() <= 0.101
    bound = (spec.d_inner * spec.num_layers) ** -0.5
    out_proj = weights[mixer + "out_proj.weight"].abs().max()
    assert 0.95 * bound < out_proj <= bound
    assert weights[mixer + "conv1d.weight"].abs().max() <= 0.5
    assert weights["backbone.norm_f.weight"].eq(1).all()


def test_initial_loss_is_that_of_a_guess():
    spec = ModelSpec.preset("tiny")
    model = init_weights(HybridLM(spec), seed=0)
    tokens = tokens_of(spec, 2, 32)
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert loss == pytest.approx(math.log(spec.vocab_size), abs=0.2)
