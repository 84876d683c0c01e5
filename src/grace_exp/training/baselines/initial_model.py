"""Rationales of the model that a run started from, whatever has been trained since."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Self

from lightning.pytorch import LightningModule
from torch import nn

from grace_exp.data.prompts import Prompt
from grace_exp.encoder.model_cache import ModelCache, Work
from grace_exp.rollout.protocol import Completion, Request, RolloutEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class InitialModel(LightningModule):
    """The weights before the first update: with LoRA the model below its adapters, at no memory, else a frozen copy.

    It stays in evaluation mode and out of checkpoints: it can be rebuilt from the backbone.
    """

    def __init__(self, model: "PreTrainedModel", *, apart: bool = False) -> None:
        """Follow `model`, which has had no update and no checkpoint loaded yet.

        Args:
            model: The language model.
            apart: Copy it with LoRA, too, for engines that take weights and do not compute with the model itself.
        """
        super().__init__()
        from peft import PeftModel

        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        # With adapters the model's own weights serve, held in tuples so that they are not registered a second time.
        self._adapted: tuple[Any, ...] = (model,) if isinstance(model, PeftModel) and not apart else ()
        self.copy = None if self._adapted else copy.deepcopy(base).requires_grad_(False)
        self._model: tuple[Any] = (base if self._adapted else self.copy,)
        super().train(False)

    @property
    def model(self) -> "PreTrainedModel":
        """The language model; with adapters to be used inside `unadapted()`."""
        model: PreTrainedModel = self._model[0]
        return model

    def unadapted(self) -> Any:
        """Context in which `model` computes with the weights of the start."""
        return self._adapted[0].disable_adapter() if self._adapted else nullcontext()

    def train(self, mode: bool = True) -> Self:
        """Ignored: Lightning puts every module it holds into training mode."""
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Empty: nothing here is learned."""
        return {}


class InitialModelEngine:
    """An engine whose weights are those of the start and stay so; it writes to every text once and remembers it."""

    def __init__(self, start: InitialModel, engine: RolloutEngine, model_cache: ModelCache) -> None:
        """Write with `start`.

        Args:
            start: The model.
            engine: Writes with `start.model`.
            model_cache: What the model has written before, and where to keep what it writes.
        """
        self._start = start
        self._engine = engine
        self._model_cache = model_cache

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answer every request, in order."""
        with self._start.unadapted():
            works = [Work(Prompt(request.prompt_ids, 0), request) for request in requests]
            known = self._model_cache.rationales(works)
            # Equal requests have equal answers.
            missing = list(dict.fromkeys(r for r, answer in zip(requests, known, strict=True) if answer is None))
            # With nothing missing, too: others may share the engine, and wait for this process.
            written = dict(zip(missing, self._engine.generate(missing), strict=True))
            if written:
                self._model_cache.keep_rationales(
                    [Work(Prompt(r.prompt_ids, 0), r) for r in written], list(written.values())
                )
        return [answer or written[request] for request, answer in zip(requests, known, strict=True)]

    def sync(self, model: nn.Module) -> None:
        """Nothing: later rationales are still those of the start."""

    def sleep(self) -> None:
        """Give the device's memory to others while nothing is written."""
        self._engine.sleep()

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()
