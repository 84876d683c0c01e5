import functools
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from grace_exp.config.compose import compose_config, to_dict, validate
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError

DEVICES = "rollout.vllm.server.devices"
ON_GPU = ["rollout=vllm_server", "hardware=gpu"]


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
            ["rollout=vllm", "job=embed", "job.input=a.txt", "job.output=a.npy", "rollout.vllm.tensor_parallel=2"],
            "tensor_parallel=2 with job=embed: processes that share an engine ask it together",
        ),
        (
            ["rollout=vllm_server", "hardware.devices=2", "hardware.strategy=ddp"],
            "with 2 processes: they find the one server by its port",
        ),
        ([*ON_GPU], r"e.g. rollout.vllm.server.devices=1 \(or"),
        ([*ON_GPU, "rollout.vllm.tensor_parallel=2"], r"e.g. 'rollout.vllm.server.devices=\[1,2\]' \(or"),
        (
            [*ON_GPU, f"{DEVICES}=0"],
            f"{DEVICES}=0 with hardware.devices=1: the trainer has the first 1 .*; set {DEVICES}=1",
        ),
        (
            [
                *ON_GPU,
                "hardware.devices=2",
                "hardware.strategy=ddp",
                "rollout.vllm.server.port=8000",
                f"{DEVICES}=[1,2]",
            ],
            f"{DEVICES}=1,2 with hardware.devices=2: the trainer has the first 2 of the GPUs that the run sees; "
            f"set {DEVICES}=2",
        ),
        ([*ON_GPU, f"{DEVICES}=[1,2]"], f"{DEVICES}=1,2 with rollout.vllm.tensor_parallel=1: .* set {DEVICES}=1, o"),
        ([*ON_GPU, f"{DEVICES}=[1,1]", "rollout.vllm.tensor_parallel=2"], "takes 2 different GPU"),
        ([*ON_GPU, f"{DEVICES}={{a: 1}}"], "give the number of a GPU, a list of numbers, or text"),
        ([*ON_GPU, f"{DEVICES}=true"], "devices=true: give the number of a GPU"),
        ([*ON_GPU, f"{DEVICES}=-1"], "devices=-1: give the number of a GPU"),
        ([*ON_GPU, f"{DEVICES}=[]"], r"devices=\[\]: give the number of a GPU"),
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


@pytest.mark.parametrize(
    ("given", "parallel", "devices"),
    [
        ("1", 1, "1"),
        ("[1]", 1, "1"),
        ("[2,4]", 2, "2,4"),
        ("'2,4'", 2, "2,4"),
        ("GPU-8932f937-d72c", 1, "GPU-8932f937-d72c"),
        ("[GPU-8932f937-d72c,3]", 2, "GPU-8932f937-d72c,3"),
    ],
)
def test_the_servers_gpus_are_a_number_a_list_or_text(given: str, parallel: int, devices: str) -> None:
    config = composed(*ON_GPU, f"{DEVICES}={given}", f"rollout.vllm.tensor_parallel={parallel}")
    assert config.rollout.vllm.server.devices == devices
    assert validate(OmegaConf.create(to_dict(config))) == config  # as a checkpoint keeps it


@pytest.mark.parametrize(
    ("parallel", "mend"), [(1, "rollout.vllm.server.devices=1"), (2, "rollout.vllm.server.devices=[1,2]")]
)
def test_the_advice_works_as_printed_in_a_shell(parallel: int, mend: str) -> None:
    wanted = [*ON_GPU, f"rollout.vllm.tensor_parallel={parallel}"]
    with pytest.raises(ConfigError) as caught:
        composed(*wanted)
    advised = next(word for word in shlex.split(str(caught.value)) if word.startswith(DEVICES))
    assert advised == mend
    assert composed(*wanted, advised).rollout.vllm.server.devices == mend.partition("=")[2].strip("[]")


def test_vllm_is_given_more_texts_at_a_time() -> None:
    assert composed().job.encode.batch_size == 64
    assert composed("rollout=vllm").job.encode.batch_size == 256
    assert composed("rollout=vllm", "job.encode.batch_size=8").job.encode.batch_size == 8


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        (["+experiment=qwen_sup"], "token"),
        (["+experiment=qwen_sup", "rollout.vllm.dtype=float32"], "none"),
        (["+experiment=qwen_sup", "hardware.precision=32-true"], "none"),
        (["+experiment=qwen_sup", "hardware.precision=32-true", "rollout.vllm.dtype=bfloat16"], "token"),
        (["+experiment=qwen_sup", "rollout=transformers"], "none"),
        (["+experiment=qwen_sup", "objective=gspo"], "token"),
        (["+experiment=qwen_sup", "objective=copg"], "none"),
        (["+experiment=qwen_sup", "objective.importance.mode=none"], "none"),
        (["+experiment=qwen_sup", "objective.importance.mode=sequence"], "sequence"),
        (["+experiment=demo_tiny", "rollout=vllm"], "none"),
        (["+experiment=demo_tiny"], "none"),
    ],
)
def test_an_engine_that_computes_in_lower_precision_is_corrected_for(overrides: list[str], mode: str) -> None:
    assert compose_config(overrides, Path("run")).objective.importance.mode == mode
