"""The scripts of examples/ run, and grace_in_one_file.py trains as the framework does."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from grace_exp.policy.tiny import tiny_model, tiny_tokenizer
from grace_exp.rollout.protocol import derive_seed

ROOT = Path(__file__).parents[2]
EXAMPLES, SOURCES = ROOT / "examples", str(ROOT / "src")
QUICK = ["job.steps=1", "callbacks.export=[]", "callbacks.progress=none", "hardware.threads=1"]
OWN = """
def ranks(inputs, config):
    order = inputs.rewards_GK.argsort(dim=1).argsort(dim=1).float()
    return order - order.mean(dim=1, keepdim=True)

def reinforce(inputs, config):
    return -(inputs.advantages_N[:, None] * inputs.logprobs_NT)[inputs.counted_NT].sum(), {}

def rows(path):
    for number in range(4):
        yield {role: f"{role} {number}" for role in ("query", "positive", "negative")}
"""


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page() -> ModuleType:
    return example("grace_in_one_file")


def test_the_one_page_fits_one_page_and_has_no_class() -> None:
    text = (EXAMPLES / "grace_in_one_file.py").read_text()
    assert len(text.splitlines()) < 250 and "\nclass " not in text


def test_one_step_of_the_page_leaves_the_frameworks_weights(train, page: ModuleType, tmp_path: Path) -> None:
    data = tmp_path / "triplets.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in page.TRIPLETS))
    run = train(
        f"data.sources.file.path={data}",
        "reward.truncation.mode=none",
        "optim={learning_rate: 0.1, epsilon: 1.0}",  # Adam divides by next to nothing otherwise, which shows rounding
        "logger.samples_every_n_steps=1",
        base=[
            "+experiment=demo_tiny",
            "data=triplets",
            "prompt=paper",
            "reward=paper_supervised",
            "objective=grpo",
            "hardware.threads=1",
            "callbacks.progress=none",
            "callbacks.export=[]",
            "job.steps=1",
            "job.batch_size=4",
            f"objective.mini_batch_size={page.OBJECTIVE.mini_batch_size}",
            "objective.advantage_scale=none",
            f"rollout.group_size={page.ROLLOUTS}",
            f"rollout.max_tokens={page.MAX_TOKENS}",
        ],
    )
    order = list(dict.fromkeys(run.samples.query("role == 'positive'")["instance"]))  # the framework draws it
    assert sorted(order) == [0, 1, 2, 3]

    def same_uniforms(step: int, role: str, place: int, number: int, k: int) -> torch.Tensor:
        seed = derive_seed(0, step, role, order[place], number)
        streams = [np.random.Generator(np.random.Philox(key=[seed, sample])) for sample in range(k)]
        return torch.from_numpy(np.stack([stream.random(page.MAX_TOKENS) for stream in streams]))

    model = tiny_model(0)
    start = {name: weights.data.clone() for name, weights in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, eps=1.0, weight_decay=0.01)
    batch = [page.TRIPLETS[index] for index in order]
    rewards = page.step(model, tiny_tokenizer(), {2}, optimizer, batch, same_uniforms)

    written = run.samples.query("role == 'positive'")
    np.testing.assert_allclose(rewards.flatten(), written["total"], atol=1e-4)
    moved = max(float((weights.data - start[name]).abs().max()) for name, weights in model.named_parameters())
    assert moved > 1e-3
    for name, weights in model.named_parameters():
        torch.testing.assert_close(weights.data, run.weights[f"policy.model.{name}"], rtol=0, atol=1e-6)


def test_the_page_runs_by_itself(page: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["grace_in_one_file.py", "--steps", "2"])
    page.main()
    first = capsys.readouterr().out
    assert first.count("mean reward") == 2
    page.main()
    assert capsys.readouterr().out == first


def test_own_data_are_read_from_columns_of_any_name(tmp_path: Path) -> None:
    figures = example("own_data").main(tmp_path, *QUICK)
    assert np.isfinite(figures["reward/total/mean"])
    rows = json.loads((tmp_path / "run" / "provenance.json").read_text())["data"]["rows"]
    assert sum(rows.values()) == 4


def test_an_own_prompt_is_what_the_model_reads(tmp_path: Path) -> None:
    module = example("own_prompt")
    prompt = module.main(tmp_path, *QUICK)
    assert f"{module.SYSTEM}\n{module.QUERY_INSTRUCTION}<|im_end|>" in prompt and "How do plants eat?" in prompt


def test_a_sweep_has_a_figure_for_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SOURCES, os.environ.get("PYTHONPATH", "")]))
    figures = example("sweep_and_report").main(tmp_path, *QUICK)
    assert figures.keys() == {"0", "1"} and np.isfinite(list(figures.values())).all()
    assert figures["0"] != figures["1"]


def test_a_search_ranks_all_documents_with_their_rationales(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACE_EXP_CACHE", str(tmp_path))
    module = example("search")
    run = train("job.steps=1", "callbacks.export=[merged]")
    found = module.main(str(run.path), "What do plants live on?")
    assert sorted(document for _, document, _ in found) == sorted(module.DOCUMENTS)
    assert [cosine for cosine, _, _ in found] == sorted((cosine for cosine, _, _ in found), reverse=True)


def test_an_own_term_is_part_of_the_reward_and_its_source_is_kept(tmp_path: Path) -> None:
    figures = example("own_reward_term").main(tmp_path, *QUICK)
    assert figures["reward/custom/within_group_std"] > 0
    index = json.loads((tmp_path / "own_parts" / "index.json").read_text())
    copy = tmp_path / "own_parts" / index[0]["source"]
    assert copy.read_text() == (EXAMPLES / "own_reward_term.py").read_text()


def test_an_own_objective_and_an_own_reader_train_a_step(train, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    run = train(
        "job.steps=1",
        "objective.algorithm=custom",
        f"objective.custom={{path: {tmp_path}/mine.py, advantages: ranks, loss: reinforce}}",
        "data=triplets",
        "data.sources.file.path=anywhere",
        f"data.sources.file.reader={{path: {tmp_path}/mine.py, name: rows}}",
    )
    assert np.isfinite(run.figure("train/loss")).all() and run.figure("train/grad_norm")[0] > 0
    assert set(run.samples.query("role == 'positive'")["text"]) == {f"positive {number}" for number in range(4)}
