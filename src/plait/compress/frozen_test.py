import pytest
import torch

from plait.compress.distill import online_loss
from plait.compress.frozen import freeze
from plait.data.pack import Sample, pack
from plait.model.init import init_weights
from plait.model.layers import Linear
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec

SPEC = ModelSpec.preset("test")
# Half a step of whole numbers up to 127; half of e4m3's last bit, 2^-4, of the value itself.
ERRORS = {"int8": 0.5 / 127, "float8": 2**-4}


def model_of(seed, dtype=torch.float32):
    return init_weights(HybridLM(SPEC, dtype=dtype), seed)


def matrices(model):
    layers = model.backbone.layers.named_modules()
    return {name: module.weight for name, module in layers if isinstance(module, Linear)}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(SPEC.vocab_size, (48,), generator=generator).tolist()
    return pack([Sample(ids[:20], [1.0] * 20), Sample(ids[20:], [1.0] * 28)])


@pytest.mark.parametrize("dtype", ["int8", "float8"])
def test_every_row_is_within_half_a_step(dtype):
    model = model_of(1)
    with torch.no_grad():
        model.backbone.layers[0].mixer.in_proj.weight[3] = 0.0
        model.backbone.layers[0].mixer.in_proj.weight[4] *= 1e4
    before = {name: weight.clone() for name, weight in matrices(model).items()}
    after = matrices(freeze(model, dtype))
    assert after.keys() == before.keys()
    for name, weight in before.items():
        greatest = weight.abs().amax(1, keepdim=True)
        size = weight.abs().clamp(min=greatest * 2**-6 / 448) if dtype == "float8" else greatest
        assert ((after[name] - weight).abs() <= size * ERRORS[dtype] * 1.001).all()
    assert (after["0.mixer.in_proj"][3] == 0).all()


@pytest.mark.parametrize("dtype", ["int8", "float8"])
def test_matrices_take_a_byte_a_value_and_the_rest_what_it_took(dtype):
    model = freeze(model_of(1, torch.bfloat16), dtype)
    num_matrix = sum(weight.numel() for weight in matrices(model).values())
    num_rows = sum(len(weight) for weight in matrices(model).values())
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    assert stored == num_matrix + 4 * num_rows + 2 * (SPEC.num_parameters - num_matrix)
    assert all(weight.dtype == torch.bfloat16 for weight in matrices(model).values())


@pytest.mark.parametrize(("dtype", "allowed"), [("int8", 0.02), ("float8", 0.08)])
def test_a_student_learns_nearly_the_same(batch, dtype, allowed):
    gradients = []
    for teacher in (model_of(1), freeze(model_of(1), dtype)):
        student = model_of(2)
        online_loss(teacher)(student, batch).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
        assert not any(p.requires_grad for p in teacher.parameters())
    plain, frozen = gradients
    assert 0 < (frozen - plain).norm() < allowed * plain.norm()


def test_it_predicts_what_its_widened_weights_predict(batch):
    frozen, plain = freeze(model_of(1), "int8"), model_of(1)
    widened = matrices(frozen)
    with torch.no_grad():
        for name, weight in matrices(plain).items():
            weight.copy_(widened[name])
        assert torch.equal(frozen(batch.tokens), plain(batch.tokens))
