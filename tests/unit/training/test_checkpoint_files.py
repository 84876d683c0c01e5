"""Checkpoint files are read once per machine, and one process inspects them."""

import re
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from grace_exp.config.root import GraceConfig
from grace_exp.errors import MissingResourceError
from grace_exp.training.resume import load_checkpoint
from grace_exp.training.trainer import build_trainer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file of 4 MiB of zeros, which no buffer holds by chance."""
    path = tmp_path / "step-000001.ckpt"
    torch.save({"grace": {"completed_steps": 1}, "state_dict": {"weight": torch.zeros(2**20)}}, path)
    return path


def resident_bytes(path: Path) -> int:
    """How much of the file this process has read through its mapping."""
    regions = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    mine = [region for region in regions if str(path) in region]
    assert mine, "not mapped"
    return sum(1024 * int(found.group(1)) for region in mine if (found := re.search(r"Rss: +(\d+)", region)))


def test_what_several_processes_resume_from_is_mapped_and_read_where_it_is_used(
    checkpoint: Path, config: GraceConfig
) -> None:
    trainer = build_trainer(config.hardware, steps=1, loggers=[], callbacks=[])
    loaded = trainer.strategy.load_checkpoint(checkpoint, weights_only=True)
    weight = loaded["state_dict"]["weight"]
    assert resident_bytes(checkpoint) < 2**21
    assert not weight.any()
    assert resident_bytes(checkpoint) >= weight.nbytes


def test_the_first_process_alone_compares_checksums(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_checkpoint(checkpoint)
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] = 1
    checkpoint.write_bytes(content)
    with pytest.raises(MissingResourceError, match=r"is damaged \(the checksum of .* is wrong\)"):
        load_checkpoint(checkpoint)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert load_checkpoint(checkpoint)["state_dict"]["weight"].sum() != 0
