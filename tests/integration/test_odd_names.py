"""Run folders with brackets, quotes, blanks and equals signs: names are shown as they are; printed commands work."""

import re
import shlex
from pathlib import Path

import pytest

from grace_exp.config.compose import compose_config
from grace_exp.encoder.pretrained import resolve
from grace_exp.errors import DataError, MissingResourceError
from grace_exp.jobs import embed as embed_job
from grace_exp.jobs.terminal import our_console
from grace_exp.training.checkpoints import Interrupted

ODD = "it's [final] a=b[/b]"
SMALL_SET = ["evaluation=demo", "~evaluation.sets.stsb", "evaluation.sets.wordnet.size=4", "evaluation.minilm=false"]


def test_a_run_in_such_a_folder_says_where_it_is_and_how_it_goes_on(train, tmp_path: Path, capsys) -> None:
    folder = tmp_path / ODD / "[red]run"
    with pytest.raises(Interrupted) as raised:
        train("job.steps=2", *SMALL_SET, folder=folder, signal_in=1)
    out = capsys.readouterr().out
    assert f"run folder {folder}" in out
    hint = str(raised.value).rpartition("Continue with the same command and ")[2]
    (override,) = shlex.split(hint)
    train("job.steps=2", *SMALL_SET, "callbacks.export=[merged]", override, folder=tmp_path / "not-used")
    out = capsys.readouterr().out
    assert f"Run folder: {folder}\n" in out and f"Model: {folder}/export/merged\n" in out
    assert not (tmp_path / "not-used").exists()
    train("job.steps=2", *SMALL_SET, "callbacks.export=[merged]", override)
    assert f"{folder}: this run has ended" in capsys.readouterr().out


def test_a_folder_without_export_names_overrides_that_can_be_given(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text("{}")
    with pytest.raises(MissingResourceError) as raised:
        resolve(str(folder))
    words = shlex.split(str(raised.value).rpartition("the same command with ")[2])
    assert words[0] == "job=embed"
    config = compose_config(["+experiment=demo_tiny", words[1]], tmp_path)
    assert config.job.resume == str(folder)


def test_brackets_are_printed_in_every_place(capsys) -> None:
    from rich.table import Table

    console = our_console()
    table = Table(title="[red]title")
    table.add_column("a[/b]")
    table.add_row("[final]")
    console.print("[final] a[/b]")
    console.rule("[rule]")
    console.print(table)
    out = capsys.readouterr().out
    assert all(text in out for text in ("[final] a[/b]", "[rule]", "[red]title", "a[/b]"))


def test_nothing_is_escaped_for_a_console_that_takes_no_markup() -> None:
    import grace_exp

    for path in Path(grace_exp.__file__).parent.rglob("*.py"):
        if path.parent.name != "sweeps":  # which prints with markup, and escapes
            assert not re.search(r"rich\.markup|\[/?(bold|dim|red|green)\]\W*\{", path.read_text()), path


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("texts.jsonl", '{"text": 3}\n', "Mend the row"),
        ("texts.xyz", "a\n", "rename it to one of these"),
        ("texts.csv", "a,b\n1,2\n", "Another name can be given as job.column=..."),
        ("texts.jsonl", "", "job.input: "),
    ],
)
def test_embed_gives_advice_that_it_takes(tmp_path: Path, name: str, content: str, advice: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    arguments = ["+experiment=demo_tiny", "job=embed", f"job.input={file}", "job.output=o.npy", f"cache_dir={tmp_path}"]
    with pytest.raises(DataError, match=re.escape(advice)) as raised:
        embed_job.embed(compose_config([*arguments, "hardware=cpu"], tmp_path))
    assert not re.search(r"data\.(?!on_bad_row=reject)\w+", str(raised.value))


def test_too_few_rows_are_found_before_the_model_loads(train, monkeypatch: pytest.MonkeyPatch) -> None:
    from grace_exp.jobs import train as job

    monkeypatch.setattr(job, "assemble", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(DataError, match=r"takes 4000 different ones: lower job\.batch_size"):
        train("job.steps=1", "job.batch_size=4000", "objective.mini_batch_size=4000", "data.sources.wordnet.limit=100")
