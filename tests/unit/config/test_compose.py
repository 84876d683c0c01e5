"""Overrides arrive, and what cannot be used is named with key, value and what is allowed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from grace_exp.config import compose as module
from grace_exp.config.compose import compose_config, conf_dir, to_dict, validate
from grace_exp.errors import ConfigError


@pytest.fixture(scope="module")
def _composed_once() -> DictConfig:
    return _composed()


@pytest.fixture
def demo_tiny(_composed_once: DictConfig) -> DictConfig:
    """The settings of `+experiment=demo_tiny`, to be changed by a test."""
    return copy.deepcopy(_composed_once)


def _problems_of(settings: DictConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(settings)
    first, *lines = str(caught.value).split("\n  ")
    assert first == "these settings cannot be used:"
    return lines


def _composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        settings = compose("config", overrides=["+experiment=demo_tiny", *overrides])
    settings.run_dir = "run"
    return settings


def test_every_wrong_setting_is_named_with_its_value_and_what_is_allowed() -> None:
    wrong = {
        "objective.clip_low=1.5": "objective.clip_low = 1.5: must be a number, more than 0, less than 1",
        "rollout.group_size=8.0": "rollout.group_size = 8.0: must be a whole number, at least 1",
        "rollout.max_tokens='8'": 'rollout.max_tokens = "8": must be a whole number, at least 1',
        "seed=true": "seed = true: must be a whole number, at least 0, less than 4294967296",
        "name=a/b": 'name = "a/b": must be text, of length at most 128, matching ^[A-Za-z0-9._-]+$',
        "callbacks.export=[mergd]": "callbacks.export.0 = \"mergd\": must be 'adapter' or 'merged'",
        "hardware.precision=fp8": "hardware.precision = \"fp8\": must be '32-true' or 'bf16-mixed'",
        f"hardware.strategy={'x' * 500}": f"hardware.strategy = \"{'x' * 79} ...: must be 'auto', 'ddp' or 'fsdp2'",
        "optim.max_grad_norm=0": "optim.max_grad_norm = 0: must be a number, more than 0, or null",
        "optim.learning_rate=nan": "optim.learning_rate = NaN: must be a number, more than 0, at most 1 and finite",
        "reward.terms.positive=3": "reward.terms.positive = 3: must be a mapping with keys of weight, or null",
        "+backbone.template_kwargs.date=[1]": (
            "backbone.template_kwargs.date = [1]: must be text, or a whole number, or true or false"
        ),
        "backbone.lora={rank: 0, target_modules: 3}": "backbone.lora.rank = 0: must be a whole number, at least 1",
        "backbone.pooling.layer=x": 'backbone.pooling.layer = "x": must be a whole number',
        "+reward.terms.consistancy.weight=1": (
            'reward.terms.consistancy = {"weight": 1}: unknown key (did you mean reward.terms.consistency?); allowed '
            "under reward.terms: positive, negative, consistency, hard_negative, infonce, margin_rank, log_rank, "
            "softmax_negative, format, length, faithfulness, custom"
        ),
        "+reward.foo=1": (
            "reward.foo = 1: unknown key; allowed under reward: name, temperature, terms, truncation, encoder"
        ),
        "+evaluation.sets.mine={kind: sts}": "evaluation.sets.mine.source: missing; must be 'stsb' or 'wordnet'",
        "data=triplets": "data.sources.file.path: not given; say data.sources.file.path=...",
    }
    target_modules = "backbone.lora.target_modules = 3: must be text, or a list, each entry text"
    assert set(_problems_of(_composed(*wrong))) == {*wrong.values(), target_modules}


def test_a_broken_interpolation_is_named() -> None:
    (line,) = _problems_of(_composed("job.resume=${nothing.here}"))
    assert line == "job.resume: Interpolation key 'nothing.here' not found"


WORDNET_SET = {"kind": "retrieval", "source": "wordnet"}
ONE_INSTANCE = {"job.batch_size": 1, "objective.mini_batch_size": 1}
NO_TERMS: dict[str, Any] = dict.fromkeys(("positive", "negative", "consistency", "hard_negative"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"job.batch_size": 6}, "job.batch_size=6 is not a multiple of objective.mini_batch_size=4"),
        (
            {"hardware.devices": 3, "hardware.strategy": "ddp"},
            "objective.mini_batch_size=4 is not a multiple of the 3 processes",
        ),
        ({"hardware.devices": 2}, "hardware.strategy='auto' is for one process"),
        (
            {"hardware.strategy": "fsdp2", "rollout.vllm.probe": True, "rollout.engine": "vllm"},
            "hardware.strategy='fsdp2' with rollout.vllm.probe=true",
        ),
        (
            {
                "hardware.strategy": "fsdp2",
                "hardware.accelerator": "gpu",
                "hardware.packing": True,
                "hardware.packed_attention": "flex",
                "hardware.share_head": False,
            },
            "hardware.strategy='fsdp2' with hardware.packed_attention='flex'",
        ),
        (
            {"hardware.strategy": "fsdp2", "hardware.compile": True, "rollout.engine": "vllm"},
            "hardware.strategy='fsdp2' with hardware.compile=true",
        ),
        ({"hardware.precision": "bf16-mixed"}, "hardware.precision='bf16-mixed' with hardware.accelerator='cpu'"),
        ({"optim.warmup_steps": 6}, "optim.warmup_steps=6 is more than the 5 optimizer updates"),
        ({"rollout.batch_tokens": 100}, "rollout.batch_tokens=100 cannot hold one sequence of prompt.max_tokens=128"),
        ({"evaluation.max_tokens": 9000}, "rollout.batch_tokens=8192 cannot hold one sequence"),
        (
            {"data.mode": "unsupervised", "reward.terms.hard_negative": None},
            "reward.terms.negative is set, but data.mode='unsupervised'",
        ),
        ({"data.negatives": 0}, "reward.terms.negative is set, but data.negatives=0"),
        (
            {"reward.terms.faithfulness": {"weight": 1.0}, "backbone.pooling.region": "rationale"},
            "reward.terms.faithfulness compares with the text without rationale",
        ),
        (
            {"reward.terms.faithfulness": {"weight": 1.0}, "job.batch_size": 1, "objective.mini_batch_size": 1},
            "reward.terms.faithfulness swaps rationales between the instances of a process, but job.batch_size=1",
        ),
        ({"callbacks.export": ["adapter"]}, "callbacks.export contains 'adapter', but backbone.lora is null"),
        (
            {"backbone.pooling.region": "text"},
            "backbone.pooling.region='text' gives all rationales of a group the same",
        ),
        (
            {"rollout.anchor_rationales": False, "rollout.policy_role": "both"},
            "rollout.anchor_rationales=false with rollout.policy_role='both'",
        ),
        (
            {"rollout.anchor_rationales": False, "backbone.pooling.region": "rationale"},
            "rollout.anchor_rationales=false with backbone.pooling.region='rationale'",
        ),
        ({"rollout.group_size": 1}, "rollout.group_size=1: an advantage compares the rationales of a group"),
        ({"job.name": "evaluate"}, "job=evaluate, but evaluation=none has no sets"),
        ({"evaluation.every_n_steps": 2}, "evaluation.every_n_steps=2, but evaluation=none has no sets"),
        (
            {
                "callbacks.checkpoint.monitor": "val/stsb/rationale",
                "evaluation.sets": {"w": WORDNET_SET},
                "evaluation.every_n_steps": 1,
            },
            "callbacks.checkpoint.monitor=val/stsb/rationale, but evaluation=none has no set 'stsb'",
        ),
        (
            {"callbacks.checkpoint.monitor": "val/w/rationale", "evaluation.sets": {"w": WORDNET_SET}},
            "callbacks.checkpoint.monitor=val/w/rationale is not measured during training: set evaluation.every_n",
        ),
        (
            {"callbacks.checkpoint.monitor": "embed/augmentation_overlap", **ONE_INSTANCE},
            "callbacks.checkpoint.monitor=embed/augmentation_overlap compares several rationales of several texts",
        ),
        (
            {"hardware.keep_forward": True, "objective.dynamic_sampling": {"max_rounds": 1}},
            "hardware.keep_forward=true keeps forwards of rationales that objective.dynamic_sampling may exchange",
        ),
        ({"data.sources.wordnet.mode": "unsupervised"}, "data: sources.wordnet.mode='unsupervised' in a recipe of"),
        ({"data.mode": "mixed"}, "data: mode='mixed', but sources.wordnet.mode=null: say supervised or unsupervised"),
        ({"data.sources.wordnet.negatives": 0}, "reward.terms.negative is set, but data.negatives=1 (or the sources'"),
        ({"backbone.source": "hub"}, "backbone: source='hub' with path=None"),
        ({"data.sources": {}}, "data: `sources` is empty"),
        ({"reward.terms": NO_TERMS}, "reward.terms: no reward term is set"),
    ],
)
def test_settings_that_contradict_each_other_are_named(
    demo_tiny: DictConfig, changes: dict[str, Any], words: str
) -> None:
    for key, value in changes.items():
        OmegaConf.update(demo_tiny, key, value, merge=False)
    (line,) = _problems_of(demo_tiny)
    assert line.startswith(words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("objective.replay.share=0.1", "objective.replay.share=0.1 of objective.mini_batch_size=4 is 0 stored"),
        ("hardware={devices: 2, strategy: ddp}", "is 1 stored instances an update: it must be a multiple of the 2"),
        ("hardware.keep_forward=true", "hardware.keep_forward=true takes scored log-probs for old ones"),
    ],
)
def test_stored_instances_are_shared_evenly_and_scored_anew(changes: str, words: str) -> None:
    settings = _composed("objective=copg", "objective.replay.share=0.25", changes)
    assert any(words in line for line in _problems_of(settings))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["rollout=vllm_server"], "hardware.one_pass=true with rollout.engine='vllm_server', which does not pool"),
        (["hardware.strategy=fsdp2"], "hardware.strategy='fsdp2' with hardware.one_pass=true"),
    ],
)
def test_one_pass_is_forced_only_where_it_can_be(changes: list[str], words: str) -> None:
    settings = _composed("hardware.one_pass=true", *changes)
    assert any(line.startswith(words) for line in _problems_of(settings))


def test_several_contradictions_have_a_line_each(demo_tiny: DictConfig) -> None:
    demo_tiny.job.batch_size, demo_tiny.hardware.devices, demo_tiny.callbacks.export = 6, 2, ["adapter"]
    assert len(_problems_of(demo_tiny)) == 3


def test_what_the_job_does_not_do_contradicts_nothing() -> None:
    overrides = ["+experiment=demo", "job=evaluate", "backbone.pooling.region=text", "rollout.group_size=1"]
    assert compose_config(overrides, Path("run")).job.name == "evaluate"


def test_overrides_arrive_with_their_types() -> None:
    config = compose_config(
        [
            "+experiment=demo_tiny",
            "reward.terms.consistency.weight=1",
            "reward.terms.negative=null",
            "+reward.terms.infonce.weight=0.5",
            "optim.learning_rate=1e-6",
            "backbone.lora={rank: 4, alpha: 8}",
            "data.sources.wordnet.limit=10",
        ],
        Path("run"),
    )
    terms = config.reward.terms
    assert terms.consistency is not None and terms.infonce is not None and config.backbone.lora is not None
    assert isinstance(terms.consistency.weight, float) and terms.consistency.weight == 1.0
    assert terms.negative is None
    assert (terms.infonce.weight, terms.infonce.temperature) == (0.5, 0.05)
    assert config.optim.learning_rate == 1e-6
    assert (config.backbone.lora.rank, config.backbone.lora.target_modules) == (4, "all-linear")
    assert config.data.sources["wordnet"].limit == 10


def test_the_cache_folder_follows_the_environment_and_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("GRACE_EXP_CACHE", raising=False)
    assert compose_config([], Path("run")).cache_dir == "/home/someone/.cache/grace-exp"
    monkeypatch.setenv("GRACE_EXP_CACHE", "/big/disk")
    assert compose_config([], Path("run")).cache_dir == "/big/disk"


def test_saved_yaml_is_resolved_and_loads_to_equal_settings(tmp_path: Path) -> None:
    config = compose_config(["+experiment=demo", "optim.learning_rate=1e-6"], tmp_path)
    saved = yaml.safe_dump(to_dict(config))
    assert "${" not in saved
    loaded = OmegaConf.create(saved)
    assert isinstance(loaded, DictConfig) and validate(loaded) == config
    assert to_dict(config)["optim"]["learning_rate"] == 1e-6


def test_keys_and_choices_that_do_not_exist_are_errors_of_composition() -> None:
    with pytest.raises(ConfigCompositionException, match=r"rewrad\.x"):
        compose_config(["rewrad.x=1"], Path("run"))
    with pytest.raises(MissingConfigException, match="paper_supervised"):
        compose_config(["reward=foo"], Path("run"))


def test_conf_is_found_in_a_checkout_and_in_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "grace_exp"
    monkeypatch.setattr(module, "__file__", str(package / "config" / "compose.py"))
    with pytest.raises(ConfigError, match="reinstall"):
        conf_dir()
    for folder in (tmp_path / "conf", package / "conf"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        assert conf_dir() == folder


def test_settings_compose_inside_hydras_own_application_and_leave_it_as_it_was() -> None:
    """`job.model=tiny` composes the settings of that backbone while the command line's are in use."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert compose_config(["+experiment=demo_tiny"], Path("run")).name == "demo_tiny"
        assert compose("config", overrides=["+experiment=demo_tiny"]).name == "demo_tiny"
