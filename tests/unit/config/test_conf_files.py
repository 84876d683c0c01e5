"""Every file in conf/ composes into settings that pass the schemas."""

import dataclasses
import functools
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from grace_exp.config.compose import compose_config, conf_dir, to_dict
from grace_exp.config.experiments import BACKBONES, ROWS, paired_experiments
from grace_exp.config.root import GraceConfig
from grace_exp.errors import ConfigError

CONF = conf_dir()
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PAIRED = sorted(paired_experiments())
PRESETS = sorted(path.stem for path in (CONF / "debug").glob("*.yaml"))
ADDED = ("experiment", "sweep", "debug", "hydra")  # with a plus; Hydra's own
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ADDED)
CHOICES = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in GROUPS}
PAPER = {
    "qwen": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen25_3b": "Qwen/Qwen2.5-3B-Instruct",
    "llama32_3b": "meta-llama/Llama-3.2-3B-Instruct",
    "qwen3_4b": "Qwen/Qwen3-4B-Instruct-2507",
}
NEED_NEGATIVES = ("mixed", "paper_supervised", "rollout_negatives")
UNSUPERVISED = ("texts", "wiki1m", "stsb_unsup", "wordnet_unsup")


@functools.cache
def composed(*overrides: str) -> GraceConfig:
    return compose_config(list(overrides), Path("run"))


def _recipes() -> list[dict[str, str]]:
    """Combinations that fit together and between them hold every choice of every group."""
    recipes = []
    need_negatives = iter(NEED_NEGATIVES)
    methods = itertools.cycle([method for method in CHOICES["method"] if method != "simcse"])
    others = itertools.cycle([reward for reward in CHOICES["reward"] if reward not in NEED_NEGATIVES])
    for number in range(max(map(len, CHOICES.values()))):
        recipe = {group: choices[number % len(choices)] for group, choices in CHOICES.items()}
        supervised = recipe["data"] not in UNSUPERVISED
        recipe["method"] = "grace" if "mixed" in recipe["data"] else next(methods) if supervised else "simcse"
        recipe["reward"] = (next(need_negatives, None) if supervised else None) or next(others)
        if recipe["job"] == "evaluate" and recipe["evaluation"] == "none":
            recipe["evaluation"] = "demo"
        recipes.append(recipe)
    return recipes


def test_the_groups_are_the_parts_of_the_schema() -> None:
    single = {"name", "seed", "run_dir", "cache_dir", "optimized_metric"}
    assert set(GROUPS) == {field.name for field in dataclasses.fields(GraceConfig)} - single


def test_the_recipes_below_hold_every_choice() -> None:
    assert {group: sorted({recipe[group] for recipe in _recipes()}) for group in GROUPS} == CHOICES


@pytest.mark.parametrize("recipe", _recipes(), ids=lambda recipe: recipe["data"])
def test_every_choice_of_every_group_composes(recipe: dict[str, str]) -> None:
    choices = [f"{group}={choice}" for group, choice in recipe.items()]
    needed = ["data.sources.file.path=mine.jsonl"] if recipe["data"] in ("texts", "triplets") else []
    needed += ["job.input=mine.txt", "job.output=mine.npy"] if recipe["job"] == "embed" else []
    needed += ["job.input=mine.jsonl", "job.output=o.jsonl"] if recipe["job"] == "mine_negatives" else []
    needed += ["job.input=mine.jsonl", "job.model=mine"] if recipe["job"] == "fit_adaptive" else []
    needed += ["job.model=mine"] if recipe["job"] == "fit_center" else []
    if recipe["job"] == "distill":
        needed += ["job.input=mine.txt", "job.model=mine", "+evaluation.sets.one={kind: sts, source: stsb}"]
    needed += ["job.run=mine"] if recipe["job"] in ("report", "dashboard") else []
    needed += ["job.text_a=A cat.", "job.text_b=A dog."] if recipe["job"] == "explain" else []
    needed += ["rollout.vllm.server.url=http://127.0.0.1:8000"] if recipe["rollout"] == "vllm_server" else []
    needed += ["hardware.devices=1"] if recipe["job"] in ("serve", "distill", "fit_adaptive") else []
    needed += ["objective.advantage_scale=none"] if recipe["objective"] == "exact" else []
    if recipe["method"] == "rejection_sft":  # it knows of the objective only what shapes the reward
        needed += ["objective.pathwise.weight=0", "objective.kl.coefficient=0", "objective.entropy_coefficient=0"]
        needed += ["objective.replay=null"]
    needed += ["objective.pathwise.weight=0"] if recipe["reward"] == "log_rank" else []
    config = composed("+experiment=demo_tiny", *choices, *needed)
    for group in ("backbone", "data", "prompt", "reward", "objective", "hardware", "evaluation", "job"):
        assert getattr(config, group).name == recipe[group]


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, *PAIRED])
def test_every_experiment_composes_and_is_named_after_itself(experiment: str) -> None:
    config = composed(f"+experiment={experiment}")
    assert config.name == (f"{config.backbone.name}_{experiment}" if experiment in ROWS else experiment)
    assert (config.job.small_experiment is None) == (config.hardware.accelerator == "cpu")
    if config.job.small_experiment is not None:
        small = composed(f"+experiment={config.job.small_experiment}")
        assert small.hardware.accelerator == "cpu" and small.data.mode == config.data.mode


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_what_it_asks_costs_and_expects(experiment: str) -> None:
    header = (CONF / "experiment" / f"{experiment}.yaml").read_text().split("defaults:")[0]
    assert header.startswith("# @package _global_\n# ")
    assert ("Question:" in header or "Paper row:" in header) and "Cost:" in header and "Expected" in header


@pytest.mark.parametrize("experiment", PAIRED)
def test_the_name_of_a_pair_composes_to_row_and_backbone(experiment: str) -> None:
    row, backbone = paired_experiments()[experiment]
    pair = composed(f"+experiment={row}", f"backbone={backbone}")
    assert replace(pair, name=experiment) == composed(f"+experiment={experiment}")
    assert pair.name == f"{backbone}_{row}" and pair.backbone.name == backbone


def test_backbones_and_rows_of_pairs_are_choices() -> None:
    assert set(BACKBONES.values()) <= set(CHOICES["backbone"])
    assert set(ROWS) <= set(EXPERIMENTS) and not set(PAIRED) & set(EXPERIMENTS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("experiment", ["demo", "qwen_unsup"])
def test_debug_presets_shrink_an_experiment_to_one_step(preset: str, experiment: str) -> None:
    config, plain = composed(f"+experiment={experiment}", f"+debug={preset}"), composed(f"+experiment={experiment}")
    assert (config.job.steps, config.job.batch_size, config.rollout.group_size) == (1, 4, 2)
    assert (config.reward.terms, config.data) == (plain.reward.terms, plain.data)
    assert config.evaluation.sets == {} and config.logger.wandb is None and config.callbacks.export == []
    if preset == "tiny":
        assert (config.backbone.source, config.hardware.accelerator) == ("tiny", "cpu")


@pytest.mark.parametrize(("experiment", "data"), [("qwen_sup", "wordnet"), ("qwen_unsup", "wordnet_unsup")])
def test_an_experiment_of_the_paper_can_be_shrunk_onto_data_of_the_package(experiment: str, data: str) -> None:
    assert composed(f"+experiment={experiment}", "+debug=tiny", f"data={data}").data.name == data


@pytest.mark.parametrize("experiment", [f"{name}_{mode}" for name in PAPER for mode in ("sup", "unsup")])
def test_experiments_of_the_paper_use_its_settings(experiment: str) -> None:
    """The settings of the paper and its released scripts (arXiv 2510.04506)."""
    config = composed(f"+experiment={experiment}")
    mode = "unsupervised" if experiment.endswith("_unsup") else "supervised"
    rollout, objective, optim, terms = config.rollout, config.objective, config.optim, config.reward.terms
    assert (rollout.group_size, config.job.batch_size, objective.mini_batch_size, config.job.steps) == (8, 64, 16, 1000)
    assert (rollout.temperature, rollout.anchor_temperature, rollout.max_tokens) == (1.0, 0.5, 2048)
    assert (config.prompt.name, config.prompt.max_tokens) == ("paper", 1024)
    assert (optim.learning_rate, optim.schedule, optim.weight_decay, optim.max_grad_norm) == (1e-6, "constant", 0.01, 1)
    assert (objective.clip_low, objective.clip_high, objective.advantage_scale) == (0.2, 0.2, "none")
    assert objective.kl.coefficient == 0
    assert terms.positive is not None and terms.consistency is not None and terms.hard_negative is not None
    assert (terms.positive.weight, terms.consistency.weight, terms.hard_negative.weight) == (1, 0.2, 0.2)
    anchor = "query" if mode == "supervised" else "rollout"
    assert (terms.hard_negative.anchor, terms.negative is None, terms.infonce) == (anchor, mode == "unsupervised", None)
    assert config.reward.temperature == 0.1
    assert (config.reward.truncation.mode, config.reward.truncation.value) == ("absolute", -1)
    assert (config.data.mode, config.backbone.lora, config.hardware.devices) == (mode, None, 4)


def test_the_backbones_of_the_paper_have_their_hub_names() -> None:
    assert {name: composed(f"+experiment={name}_sup").backbone.path for name in PAPER} == PAPER


def test_what_optuna_optimises_must_be_measured() -> None:
    with pytest.raises(ConfigError, match="optimized_metric=val/stsb/rationale, but evaluation=none"):
        compose_config(["+experiment=demo_tiny", "optimized_metric=val/stsb/rationale"], Path("run"))
    assert composed("+experiment=demo", "optimized_metric=val/stsb/rationale").optimized_metric


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm", "slurm_gpu"])
def test_launchers_compose(launcher: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["+experiment=qwen_sup", "+sweep=seeds", f"hydra/launcher={launcher}", "run_dir=run"]
        settings = compose("config", overrides=overrides, return_hydra_config=True)
    if launcher == "slurm_gpu":
        wanted = settings.hydra.launcher
        assert (wanted.nodes, wanted.gpus_per_node, wanted.tasks_per_node) == (1, 4, 4)


def _keys(settings: Any) -> Any:
    return {key: _keys(value) for key, value in settings.items()} if isinstance(settings, dict) else None


@pytest.mark.parametrize("experiment", ["demo", "qwen_unsup"])
def test_every_knob_is_in_the_yaml_so_that_it_can_be_overridden_without_a_plus(experiment: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        written = compose("config", overrides=[f"+experiment={experiment}", "run_dir=run"])
    assert _keys(OmegaConf.to_container(written)) == _keys(to_dict(composed(f"+experiment={experiment}")))
