import functools
from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError


@functools.cache
def composed(*overrides: str) -> GraceConfig:
    return compose_config(["+experiment=demo_tiny", *overrides], Path("run"))


@pytest.mark.parametrize("engine", ["vllm", "vllm_server"])
def test_an_engine_is_chosen_without_changing_what_is_asked_of_it(engine: str) -> None:
    config, plain = composed(f"rollout={engine}"), composed()
    assert config.rollout.engine == engine
    assert (config.rollout.group_size, config.rollout.max_tokens) == (
        plain.rollout.group_size,
        plain.rollout.max_tokens,
    )


def test_debug_runs_compare_engine_and_policy() -> None:
    assert composed("rollout=vllm", "+debug=fast").rollout.vllm.probe
    assert not composed("rollout=vllm").rollout.vllm.probe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout=vllm", "rollout.vllm.lora=adapter"], "backbone.lora is null"),
        (
            ["rollout=vllm", "rollout.vllm.lora=adapter", "backbone.lora={rank: 1024}"],
            "backbone.lora.rank=1024: vLLM's adapters have rank 512 at most",
        ),
        (["rollout=vllm", "rollout.vllm.tensor_parallel=2"], "tensor_parallel=2 does not divide the 1 processes"),
        (
            ["rollout=vllm_server", "hardware.devices=2", "hardware.strategy=ddp"],
            "with 2 processes: they find the one server by its port",
        ),
        (["rollout=vllm_server", "hardware=gpu"], r"rollout.vllm.server.devices='1'"),
        (["rollout=vllm", "rollout.vllm.max_sequences=2"], "max_sequences=2 is less than rollout.group_size=4"),
        (["rollout=vllm_server", "rollout.vllm.server.url=localhost"], "rollout.vllm.server.url"),
        (
            ["rollout=vllm_server", "rollout.vllm.server.url=http://a:1", "rollout.vllm.server.port=5"],
            "the port belongs to a server that the run starts",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


def test_what_the_transformers_engine_does_not_read_is_not_checked() -> None:
    assert composed("rollout.vllm.lora=adapter", "rollout.vllm.tensor_parallel=2").rollout.engine == "transformers"
