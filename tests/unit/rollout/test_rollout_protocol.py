import itertools

import pytest

from grace_exp.rollout.protocol import Completion, derive_seed


def test_seeds_of_neighbouring_draws_differ() -> None:
    draws = list(itertools.product(range(3), range(100), ("query", "positive", "negative"), range(50)))
    assert len({derive_seed(*draw) for draw in draws}) == len(draws)


def test_a_seed_depends_on_the_order_of_its_parts_and_on_nothing_else() -> None:
    assert derive_seed(1, 2, "query") != derive_seed(2, 1, "query")
    assert derive_seed(1, 12) != derive_seed(11, 2)
    # A run resumed years later draws the same: `printf 0/3/query/7 | b2sum -l 64`, the upper 63 bits.
    assert derive_seed(0, 3, "query", 7) == 5747244330334720005


def test_seeds_fit_63_bits_and_use_them() -> None:
    seeds = [derive_seed(number) for number in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


@pytest.mark.parametrize(("reason", "truncated"), [("stop", False), ("length", True)])
def test_a_completion_is_truncated_when_the_limit_ended_it(reason: str, truncated: bool) -> None:
    assert Completion((1,), (0.0,), reason).truncated is truncated  # type: ignore[arg-type]
