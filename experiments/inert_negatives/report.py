"""The study's tables and figure from its result files and run folders."""

import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import over_seeds, resampled

from grace_exp.evaluation.scores import ItemScores
from grace_exp.training.callbacks.heldout_evaluation import read_results

REWARDS = ("paper_supervised", "paper_no_negatives", "rollout_negatives", "infonce")
CURVES = {
    "embed/in_batch_accuracy": "nearest query is its own",
    "embed/margin": "cosine to its query less to others",
    "embed/cos_random": "cosine of unrelated texts",
}
Heldout = dict[str, dict[str, dict[int, ItemScores]]]  # set -> reward -> seed -> items


def write_report(results: Path, sweep: Path) -> None:
    """Write `heldout.csv`, `curves.csv`, `curves.svg` and `tables.md` into `results`.

    Args:
        results: Folder with `probe.csv`.
        sweep: The folder of the finished sweep.
    """
    heldout, curves = _read(sweep)
    _write_csv(results / "heldout.csv", _heldout_rows(heldout))
    _write_csv(results / "curves.csv", curves)
    _draw(curves, results / "curves.svg")
    with (results / "probe.csv").open() as stream:
        probe = list(csv.DictReader(stream))
    text = "\n".join([*_probe_table(probe), "", *_share_table(sweep), "", *_heldout_table(heldout)])
    (results / "tables.md").write_text(text + "\n")


def _runs(sweep: Path) -> list[tuple[str, int, Path]]:
    """Return reward, seed and folder of every finished run."""
    found = []
    for path in sorted(sweep.glob("*/config.yaml")):
        config = yaml.safe_load(path.read_text())
        if (path.parent / "summary.json").is_file():
            found.append((config["reward"]["name"], config["seed"], path.parent))
    return found


def _trained(sweep: Path) -> list[str]:
    """Return the rewards that have runs, in order."""
    found = {reward for reward, *_ in _runs(sweep)}
    return [reward for reward in REWARDS if reward in found]


def _read(sweep: Path) -> tuple[Heldout, list[dict[str, object]]]:
    heldout: Heldout = defaultdict(lambda: defaultdict(dict))
    curves: list[dict[str, object]] = []
    for reward, seed, folder in _runs(sweep):
        for name, result in read_results(folder / "evaluation" / "after.json").items():
            heldout[name][reward][seed] = result.rationale
        with (folder / "metrics.csv").open() as stream:
            for row in csv.DictReader(stream):
                if row["embed/margin"]:
                    step = int(float(row["step"]))
                    curves.append({"reward": reward, "seed": seed, "step": step} | {k: row[k] for k in CURVES})
    return heldout, curves


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _heldout_rows(heldout: Heldout) -> list[dict[str, object]]:
    return [
        {"set": name, "reward": reward, "seed": seed, "figure": round(items.figure(), 2)}
        for name, rewards in heldout.items()
        for reward, seeds in rewards.items()
        for seed, items in sorted(seeds.items())
    ]


def _probe_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    lines = [
        "| reward | largest change of a reward | of an advantage | advantages, root mean square | change of the gradient, relative | cosine of the gradients |",  # noqa: E501
        "|---|---|---|---|---|---|",
    ]
    for reward in REWARDS:
        own = [row for row in rows if row["reward"] == reward]
        worst = {key: max(float(row[key]) for row in own) for key in ("reward_change", "advantage_change")}
        mean = {
            key: statistics.mean(float(row[key]) for row in own)
            for key in ("advantage_size", "gradient_change", "gradient_cosine")
        }
        lines.append(
            f"| {reward} | {worst['reward_change']:.2g} | {worst['advantage_change']:.1g} | "
            f"{mean['advantage_size']:.2f} | {mean['gradient_change']:.2g} | {mean['gradient_cosine']:.3f} |"
        )
    return lines


def _share_table(sweep: Path) -> list[str]:
    """Return the mean share of every term in the advantages' variance, over all steps and seeds."""
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for reward, _, folder in _runs(sweep):
        with (folder / "metrics.csv").open() as stream:
            for row in csv.DictReader(stream):
                for key, value in row.items():
                    if key.endswith("/advantage_share") and value:
                        shares[reward, key.split("/")[1]].append(float(value))
    terms = list(dict.fromkeys(term for _, term in shares))
    lines = ["| share of the advantages' variance | " + " | ".join(terms) + " |", "|---" * (len(terms) + 1) + "|"]
    for reward in _trained(sweep):
        cells = [f"{statistics.mean(shares[reward, t]):.2f}" if (reward, t) in shares else "" for t in terms]
        lines.append(f"| {reward} | " + " | ".join(cells) + " |")
    return lines


def _heldout_table(heldout: Heldout) -> list[str]:
    names = list(heldout)
    figures = {
        (name, reward, seed): resampled([items])
        for name, rewards in heldout.items()
        for reward, seeds in rewards.items()
        for seed, items in seeds.items()
    }
    lines = [
        "| reward | " + " | ".join(f"{name} | less paper_supervised" for name in names) + " |",
        "|---" * (2 * len(names) + 1) + "|",
    ]
    for reward in (reward for reward in REWARDS if reward in heldout[names[0]]):
        cells = []
        for name in names:
            rewards = heldout[name]
            seeds = sorted(rewards[reward].keys() & rewards["paper_supervised"].keys())
            own, paper = ([figures[name, which, seed] for seed in seeds] for which in (reward, "paper_supervised"))
            cells += [str(over_seeds(own)), "" if reward == "paper_supervised" else str(over_seeds(own, paper))]
        lines.append(f"| {reward} | " + " | ".join(cells) + " |")
    return lines


def _draw(curves: Sequence[Mapping[str, object]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "grace-exp"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(CURVES), figsize=(4 * len(CURVES), 3.2), layout="constrained")
    for axis, (key, title) in zip(axes, CURVES.items(), strict=True):
        for color, reward in enumerate(REWARDS):
            by_step: dict[int, list[float]] = defaultdict(list)
            for row in curves:
                if row["reward"] == reward:
                    by_step[int(str(row["step"]))].append(float(str(row[key])))
            if not (steps := sorted(by_step)):
                continue
            axis.plot(steps, [statistics.mean(by_step[s]) for s in steps], color=f"C{color}", label=reward)
            lows, highs = ([function(by_step[s]) for s in steps] for function in (min, max))
            axis.fill_between(steps, lows, highs, color=f"C{color}", alpha=0.12, linewidth=0)
        axis.set(title=title, xlabel="step")
    axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    write_report(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write(json.dumps({"written": sys.argv[1]}) + "\n")
