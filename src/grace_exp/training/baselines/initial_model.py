"""Rationales of the initial model of a run, whatever has been trained since."""

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
    """The weights before the first update: with LoRA the model without its adapters, at no memory; else a frozen copy.

    It stays in evaluation mode, and checkpoints do not hold it, because it can be rebuilt from the backbone.
    """

    def __init__(self, model: "PreTrainedModel", *, apart: bool = False) -> None:
        """Take the weights of `model`, which has had no update and no checkpoint loaded yet.

        Args:
            model: The language model.
            apart: Copy the model with LoRA too, for engines that take weights and do not compute with the model itself.
        """
        super().__init__()
        from peft import PeftModel

        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        # With adapters it uses the model's own weights; tuples keep them from being registered a second time.
        self._adapted: tuple[Any, ...] = (model,) if isinstance(model, PeftModel) and not apart else ()
        self.copy = None if self._adapted else copy.deepcopy(base).requires_grad_(False)
        self._model: tuple[Any] = (base if self._adapted else self.copy,)
        super().train(False)

    @property
    def model(self) -> "PreTrainedModel":
        """The language model; with adapters it must be used inside `unadapted()`."""
        model: PreTrainedModel = self._model[0]
        return model

    def unadapted(self) -> Any:
        """Return a context in which `model` computes with the initial weights."""
        return self._adapted[0].disable_adapter() if self._adapted else nullcontext()

    def train(self, mode: bool = True) -> Self:
        """Ignore the call: Lightning puts every module that it holds into training mode."""
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return an empty dict: the model is not trained."""
        return {}


class InitialModelEngine:
    """An engine that keeps the initial weights; it writes to every text once and stores the rationale."""

    def __init__(self, start: InitialModel, engine: RolloutEngine, model_cache: ModelCache) -> None:
        """Create an engine for `start`.

        Args:
            start: The initial model.
            engine: Engine that writes with `start.model`.
            model_cache: Cache of the model's rationales.
        """
        self._start = start
        self._engine = engine
        self._model_cache = model_cache

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Return the completions of every request, in order."""
        with self._start.unadapted():
            works = [Work(Prompt(request.prompt_ids, 0), request) for request in requests]
            known = self._model_cache.rationales(works)
            # Equal requests get equal answers.
            missing = list(dict.fromkeys(r for r, answer in zip(requests, known, strict=True) if answer is None))
            # Called even without requests: other processes may share the engine and wait for this one.
            written = dict(zip(missing, self._engine.generate(missing), strict=True))
            if written:
                self._model_cache.keep_rationales(
                    [Work(Prompt(r.prompt_ids, 0), r) for r in written], list(written.values())
                )
        return [answer or written[request] for request, answer in zip(requests, known, strict=True)]

    def sync(self, model: nn.Module) -> None:
        """Do nothing: later rationales also come from the initial weights."""

    def sleep(self) -> None:
        """Free the engine's device memory while it writes nothing."""
        self._engine.sleep()

    def close(self) -> None:
        """End the engine and free its memory."""
        self._engine.close()
