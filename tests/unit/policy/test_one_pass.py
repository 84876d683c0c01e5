"""When embeddings come from the hidden states of writing, and what happens if these differ from the forward's."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel

from grace_exp.config.backbone import PoolingConfig
from grace_exp.errors import ConfigError, GraceError
from grace_exp.policy.packing import Region, TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.pooled_states import PooledStates

REGIONS: tuple[Region, ...] = get_args(Region)
WRITER, MUTE = SimpleNamespace(pools_states=True), SimpleNamespace()


@torch.no_grad()
def states(model: PreTrainedModel, sequence: TextSequence, off: float = 0.0) -> PooledStates:
    """What an engine should pool (a mean), moved by a share `off` of its length."""
    prompt = len(sequence.prompt.token_ids)
    ids = torch.tensor([[*sequence.prompt.token_ids, *sequence.completion_ids]])
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0] * (1 + off)
    text, rationale = hidden[sequence.prompt.pool_start : prompt], hidden[prompt:]
    return PooledStates(text.sum(0), rationale.sum(0), len(text), len(rationale), "mean")


@pytest.fixture
def written(sequences: Callable[..., list[TextSequence]]) -> list[TextSequence]:
    return sequences([[5], [9, 3], [1], [7]])


class Forwards:
    """Counts the sequences that a policy computes by a forward."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        plain = policy.embed

        def embed(sequences: Sequence[TextSequence], regions: Sequence[Region] = ()) -> Any:
            self.sizes.append(len(sequences))
            return plain(sequences, regions)

        monkeypatch.setattr(policy, "embed", embed)


def test_the_first_batch_is_compared_and_later_ones_need_no_forward(
    policy: Any, written: list[TextSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader: Policy = policy()
    pooled = [states(reader.causal_lm, sequence) for sequence in written]
    expected = reader.embed(written, REGIONS)
    forwards = Forwards(reader, monkeypatch)
    for _ in range(2):
        found = reader.one_pass.embed(written, pooled, REGIONS)
        for region in REGIONS:
            torch.testing.assert_close(found[region], expected[region], atol=1e-5, rtol=1e-5)
    assert forwards.sizes == [len(written)]
    assert reader.one_pass.wanted(WRITER)


def test_what_has_no_states_is_computed_by_a_forward_in_its_place(
    policy: Any, written: list[TextSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader: Policy = policy()
    pooled = [None if number % 2 else states(reader.causal_lm, one) for number, one in enumerate(written)]
    expected = reader.embed(written, REGIONS)
    reader.one_pass.embed(written[:1], pooled[:1], REGIONS)
    forwards = Forwards(reader, monkeypatch)
    found = reader.one_pass.embed(written, pooled, REGIONS)
    assert forwards.sizes == [2]
    for region in REGIONS:
        torch.testing.assert_close(found[region], expected[region], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("off", [1e-4, float("nan")])
def test_a_difference_beyond_rounding_is_named_and_leads_back_to_the_forward(
    policy: Any, written: list[TextSequence], caplog: pytest.LogCaptureFixture, off: float
) -> None:
    reader: Policy = policy()
    pooled = [states(reader.causal_lm, sequence, off) for sequence in written]
    with caplog.at_level(logging.WARNING):
        found = reader.one_pass.embed(written, pooled, ("rationale",))
    (record,) = caplog.records
    assert ("by 0.0001 of their length" if off == 1e-4 else "by inf of their length") in record.getMessage()
    assert "hardware.one_pass=false" in record.getMessage()
    torch.testing.assert_close(found["rationale"], reader.embed(written, ("rationale",))["rationale"])
    assert not reader.one_pass.wanted(WRITER)


def test_true_raises_instead(policy: Any, written: list[TextSequence]) -> None:
    reader: Policy = policy(one_pass=True)
    pooled = [states(reader.causal_lm, sequence, 1e-4) for sequence in written]
    with pytest.raises(GraceError, match=r"differ from those of a forward by 0.0001 .* set hardware.one_pass=false"):
        reader.one_pass.embed(written, pooled, ("text",))


@pytest.mark.parametrize("setting", ["auto", True, False])
def test_the_setting_and_the_engine_decide(policy: Any, setting: Any) -> None:
    reader: Policy = policy(one_pass=setting)
    assert reader.one_pass.wanted(WRITER) is (setting is not False)
    if setting is True:
        with pytest.raises(ConfigError, match="SimpleNamespace does not pool hidden states; set rollout=transformers"):
            reader.one_pass.wanted(MUTE)
    else:
        assert not reader.one_pass.wanted(MUTE)


def test_auto_is_for_float32_and_whole_models(policy: Any) -> None:
    reader: Policy = policy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not reader.one_pass.wanted(WRITER)
        assert policy(one_pass=True).one_pass.wanted(WRITER)
        assert policy(one_pass=True).one_pass.rounds_differently(WRITER)
    assert not policy(one_pass=True).one_pass.rounds_differently(WRITER)
    reader.sharded = True
    assert not reader.one_pass.wanted(WRITER)


def test_the_policys_pooling_is_asked_for(policy: Any, written: list[TextSequence]) -> None:
    reader: Policy = policy(pooling=PoolingConfig(method="max", layer=1))
    prompt = replace(written[0].prompt, pool_start=2)
    asked = reader.one_pass.pooling(prompt)
    assert (asked.start, asked.method, asked.layer) == (2, "max", 1)
