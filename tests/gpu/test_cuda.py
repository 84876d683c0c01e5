"""The run on a CUDA device: the same numbers as on the CPU, within the device's precision."""

from pathlib import Path

import pytest
import torch

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.compose import compose_config
from grace_exp.config.hardware import HardwareConfig
from grace_exp.data.prompts import Prompt
from grace_exp.jobs.train import train
from grace_exp.policy.output_head import Float32Head
from grace_exp.policy.packing import TextSequence
from grace_exp.policy.policy import Policy
from grace_exp.policy.tiny import tiny_model
from grace_exp.rollout.protocol import Request
from grace_exp.rollout.transformers_engine import TransformersEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

REGION = "text_and_rationale"


def sequences() -> list[TextSequence]:
    generator = torch.Generator().manual_seed(0)
    prompts = [Prompt(tuple(torch.randint(3, 1000, (n,), generator=generator).tolist()), 2) for n in (9, 17, 30)]
    return [
        TextSequence(prompt, tuple(torch.randint(3, 1000, (length,), generator=generator).tolist()))
        for prompt in prompts
        for length in (4, 11, 7)
    ]


def policy(device: str, dtype: torch.dtype = torch.float32) -> Policy:
    model = tiny_model(0).to(device=device, dtype=dtype)
    return Policy(model, PoolingConfig(), HardwareConfig(name="test"), pad_token_id=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_scores_on_cuda_are_those_of_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    expected, found = policy("cpu").score(sequences()), policy("cuda", dtype).score(sequences())
    assert found.embeddings[REGION].dtype == torch.float32
    torch.testing.assert_close(
        found.embeddings[REGION].cpu(), expected.embeddings[REGION], atol=tolerance, rtol=tolerance
    )
    torch.testing.assert_close(found.logprobs_NT.cpu(), expected.logprobs_NT, atol=tolerance, rtol=tolerance)


def test_bf16_logits_on_cuda_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    head, hidden = Float32Head(64, 500, bias=False), torch.randn(40, 64)
    torch.nn.init.normal_(head.weight)
    found = []
    for device in ("cpu", "cuda"):
        states = hidden.to(device).requires_grad_()
        moved = head.to(device)
        with torch.autocast(device, torch.bfloat16):
            logits = moved(states)
        logits.logsumexp(-1).sum().backward()
        assert states.grad is not None
        found.append((logits.detach().cpu(), states.grad.cpu()))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-2, rtol=1e-2)


def test_the_engine_reports_the_policys_log_probs() -> None:
    scorer = policy("cuda")
    engine = TransformersEngine(scorer.model, end_token_ids=[2], pad_token_id=0, batch_tokens=4096)
    prompts = [sequence.prompt for sequence in sequences()[::3]]
    answers = engine.generate([Request(prompt.token_ids, 4, 12, 1.0, seed) for seed, prompt in enumerate(prompts)])
    written = [
        (TextSequence(prompt, completion.token_ids), completion)
        for prompt, completions in zip(prompts, answers, strict=True)
        for completion in completions
    ]
    scored = scorer.score([sequence for sequence, _ in written])
    for row, (_, completion) in zip(scored.logprobs_NT.cpu(), written, strict=True):
        torch.testing.assert_close(
            row[: len(completion.logprobs)], torch.tensor(completion.logprobs), atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("lora", ["null", "{rank: 4}"])
def test_a_run_trains_on_cuda(tmp_path: Path, precision: str, lora: str) -> None:
    config = compose_config(
        [
            "+experiment=demo_tiny",
            "hardware=gpu",
            "rollout=transformers",
            f"hardware.precision={precision}",
            f"backbone.lora={lora}",
            "logger=csv",
        ],
        tmp_path,
    )
    figures = train(config)
    assert figures["step"] == config.job.steps - 1
    assert (tmp_path / "export" / "merged" / "model.safetensors").is_file()
