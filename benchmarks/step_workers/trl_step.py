"""TRL's side of `benchmarks/step.py`: GRPO with the same prompts and reward, one step per request of the driver.

It runs in an environment of its own, which has trl but not this project. Usage: trl_step.py SETTINGS.json
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from turns import Turns


class EmbeddingReward:
    """The demo's reward for TRL: log-probability of a rationale's own query against the negative.

    As GRACE does, it writes one rationale for each query and negative. It embeds every text with its rationale by the
    mean of the last hidden states after the system prompt. Everything is batched.
    """

    __name__ = "embedding_reward"

    def __init__(self, job: dict[str, Any], turns: Turns, tokenizer: Any) -> None:
        """Set up without a trainer, which is set afterwards and has the model."""
        self._job, self._turns, self._tokenizer = job, turns, tokenizer
        self.trainer: Any = None

    @torch.no_grad()
    def __call__(self, prompts: list[str], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        """Return a reward for each completion."""
        start = time.process_time()
        model, job = self.trainer.accelerator.unwrap_model(self.trainer.model), self._job
        training = model.training
        model.eval()
        instances = [job["rows"][index] for index in dict.fromkeys(row)]
        anchors = [text for instance in instances for text in instance[1:]]
        written = self._write(model, [text["ids"] for text in anchors])
        trained = [job["rows"][index][0] for index in row]
        everything = [*zip(trained, completion_ids, strict=True), *zip(anchors, written, strict=True)]
        assert all(len(rationale) == job["tokens"] for _, rationale in everything)
        embeddings = functional.normalize(self._embed(model, everything), dim=-1)
        groups = embeddings[: len(row)].view(len(instances), job["group"], -1)
        of_anchors = embeddings[len(row) :].view(len(instances), len(anchors) // len(instances), -1)
        logits = groups @ of_anchors.transpose(1, 2) / job["reward_temperature"]
        model.train(training)
        self._turns.phases["reward"] = time.process_time() - start
        return logits.log_softmax(-1)[..., 0].flatten().tolist()

    def _write(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        job = self._job
        padded = self._tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        output = model.generate(
            **padded,
            do_sample=True,
            temperature=job["temperatures"]["anchor"],
            top_k=0,
            max_new_tokens=job["tokens"],
            min_new_tokens=job["tokens"],
            pad_token_id=self._tokenizer.pad_token_id,
        )
        return output[:, padded["input_ids"].shape[1] :].tolist()

    def _embed(self, model: Any, sequences: list[tuple[dict[str, Any], list[int]]]) -> Tensor:
        """Embed in batches of eight of similar length, without the output head."""
        decoder = model.get_base_model().model
        found: dict[int, Tensor] = {}
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index][0]["ids"]))
        for first in range(0, len(order), 8):
            chosen = order[first : first + 8]
            rows = [sequences[index][0]["ids"] + sequences[index][1] for index in chosen]
            padded = self._tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
            hidden = decoder(**padded, use_cache=False).last_hidden_state
            for place, index in enumerate(chosen):
                found[index] = hidden[place, sequences[index][0]["pool_start"] : len(rows[place])].mean(0)
        return torch.stack([found[index] for index in range(len(sequences))])


class OneAtATime(TrainerCallback):
    """Starts a step when the driver asks for it."""

    def __init__(self, turns: Turns, tokens: int) -> None:
        """Make rationales of `tokens` tokens."""
        self._turns, self._tokens = turns, tokens

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the driver's request."""
        if not self._turns.begin():
            sys.exit()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Answer the driver with the step's figures."""
        self._turns.end(tokens=float(self._tokens))


def main() -> None:
    """Set up and take turns."""
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    turns = Turns()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    job["rows"] = [instance for step in job["steps"] for instance in step]
    prompts = [tokenizer.decode(instance[0]["ids"]) for instance in job["rows"]]
    for prompt, instance in zip(prompts, job["rows"], strict=True):
        assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == instance[0]["ids"], "other prompts"
    reward, completions = EmbeddingReward(job, turns, tokenizer), job["batch"] * job["group"]
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            fp16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=completions // job["micro_batch"],
            num_generations=job["group"],
            max_completion_length=job["tokens"],
            generation_kwargs={"min_new_tokens": job["tokens"]},
            temperature=job["temperatures"]["group"],
            top_p=1.0,
            top_k=0,
            beta=0.0,
            learning_rate=job["learning_rate"],
            max_steps=len(job["steps"]),
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **job["trl"],
        )
        lora = job["lora"]
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": prompts, "row": list(range(len(prompts)))}),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=lora["rank"],
                lora_alpha=lora["alpha"],
                lora_dropout=lora["dropout"],
                target_modules=lora["targets"],
                task_type="CAUSAL_LM",
            ),
            callbacks=[OneAtATime(turns, job["tokens"])],
        )
        reward.trainer = trainer
        turns.say(ready=True)
        trainer.train()


if __name__ == "__main__":
    main()
