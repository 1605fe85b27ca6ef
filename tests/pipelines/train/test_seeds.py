from pipelines.train.seeds import step_seed


def test_seeds_of_steps_are_what_they_have_always_been() -> None:
    # A Python or a machine that gave others would train another model from the same recipe.
    assert step_seed(0, 0) == 3010437511937009226
    assert step_seed(0, 1) == 7619408953831620358
    assert step_seed(3, 7) == -4677169267312897140
    assert step_seed(2**31 - 1, 123456) == 3108214625395885387


def test_steps_and_seeds_do_not_share_them() -> None:
    assert len({step_seed(seed, step) for seed in range(50) for step in range(200)}) == 50 * 200
