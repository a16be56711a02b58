from plait.core.seed import mix_seed


def test_neighbouring_seeds_and_indices_never_meet():
    seeds = {mix_seed(seed, "stage", index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500


def test_parts_are_told_apart_by_type_and_order():
    assert mix_seed(1, "2") != mix_seed("1", 2)
    assert mix_seed("ab", "c") != mix_seed("a", "bc")
    assert mix_seed("a", 1) != mix_seed(1, "a")


def test_the_value_is_fixed_for_ever():
    # Data splits hang on it: python -c "from plait.core.seed import *; print(mix_seed(0, 'a'))"
    assert mix_seed(0, "a") == 4130328939437102701
    assert 0 <= mix_seed(0, "a") < 2**63
