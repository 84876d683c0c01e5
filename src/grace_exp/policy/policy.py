"""The policy: a language model whose one forward gives embeddings and log-probs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.errors import ConfigError
from grace_exp.policy.logprobs import token_logprobs
from grace_exp.policy.packing import MicroBatch, Region, TextSequence, collate, pack
from grace_exp.policy.pooling import pool

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Scored:
    """What the policy says of a list of sequences, in their order.

    Attributes:
        embeddings: Per region, float32 [n, hidden].
        logprobs: Of the rationale tokens, float32 [n, longest], 0 where masked.
        mask: Which positions are rationale tokens, bool [n, longest].
    """

    embeddings: dict[Region, Tensor]
    logprobs: Tensor
    mask: Tensor


@dataclass(frozen=True)
class ForwardPass:
    """A micro-batch and what its forward gave: embeddings per region [n, hidden], flat log-probs [tokens]."""

    batch: MicroBatch
    embeddings: dict[Region, Tensor]
    logprobs: Tensor


class Policy(LightningModule):
    """A causal language model (with or without adapters) read two ways in one forward."""

    def __init__(
        self, model: "PreTrainedModel", pooling: PoolingConfig, hardware: HardwareConfig, *, pad_token_id: int
    ) -> None:
        """Check that the model can be read this way.

        Args:
            model: The language model; a peft model for LoRA.
            pooling: Where the embedding is read.
            hardware: Packing and token budgets.
            pad_token_id: Fills shorter rows.

        Raises:
            ConfigError: The model alters logits after its head (soft-capping, scaling), which the chunked log-probs
                would miss, or has no such layer as `pooling.layer`.
        """
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.hardware = hardware
        self.pad_token_id = pad_token_id
        config = model.config.get_text_config()
        for setting in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
            if getattr(config, setting, None) not in (None, 1, 1.0):
                raise ConfigError(f"backbone: models with {setting} are not supported ({config.model_type})")
        layers = config.num_hidden_layers
        if not -layers - 1 <= pooling.layer <= layers:
            raise ConfigError(
                f"backbone.pooling.layer = {pooling.layer}: the model has {layers} layers, so {-layers - 1} to {layers}"
            )

    @property
    def causal_lm(self) -> "PreTrainedModel":
        """The language model below any adapters' wrapper; adapters stay active inside it."""
        from peft import PeftModel

        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def plan(self, sequences: Sequence[TextSequence], token_budget: int) -> list[list[int]]:
        """Indices of `sequences` per micro-batch."""
        return pack(
            sequences,
            share_prompts=self.hardware.packing,
            token_budget=token_budget,
            max_row_tokens=self.hardware.max_row_tokens,
        )

    def collate(self, sequences: Sequence[TextSequence], indices: Sequence[int]) -> MicroBatch:
        """The tensors of one micro-batch of a plan."""
        return collate(
            sequences,
            indices,
            share_prompts=self.hardware.packing,
            max_row_tokens=self.hardware.max_row_tokens,
            pad_token_id=self.pad_token_id,
            device=self.model.device,
        )

    def forward(self, batch: MicroBatch, regions: Sequence[Region] = ()) -> tuple[dict[Region, Tensor], Tensor]:
        """One forward.

        Args:
            batch: Rows to compute.
            regions: Regions to pool; the embeddings carry no gradient (METHOD: none flows through them).

        Returns:
            Embeddings per region, float32 [n, hidden], and the log-probs of the rationale tokens, flat [tokens].
        """
        causal_lm = self.causal_lm
        mask = batch.attention_mask()
        if mask is not None and self.model.config._attn_implementation == "eager":
            # The eager path adds its mask to the scores.
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)
        with _recorded_layer(causal_lm, self.pooling.layer if regions else -1) as recorded:
            last_hidden: Tensor = causal_lm.get_decoder()(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=mask,
                use_cache=False,  # nothing is decoded
            ).last_hidden_state
        pooled = recorded[0] if recorded else last_hidden
        embeddings = {
            region: pool(pooled.detach(), batch, region=region, method=self.pooling.method) for region in regions
        }
        logprobs = token_logprobs(
            last_hidden.flatten(0, 1)[batch.predictors],
            batch.targets,
            batch.temperatures,
            causal_lm.get_output_embeddings(),
            chunk=self.hardware.logprob_chunk_tokens,
        )
        return embeddings, logprobs

    @torch.no_grad()
    def score(self, sequences: Sequence[TextSequence], regions: Sequence[Region] | None = None) -> Scored:
        """Embeddings and log-probs of any number of sequences, without gradients.

        Args:
            sequences: What to score; equal prompts are computed once.
            regions: Pooled regions; null: the configured one.
        """
        was_training = self.model.training
        self.model.eval()  # no dropout, no gradient checkpointing
        scored = collect(
            sequences, self.passes(sequences, self.hardware.score_tokens, regions or (self.pooling.region,))
        )
        self.model.train(was_training)
        return scored

    def passes(
        self, sequences: Sequence[TextSequence], token_budget: int, regions: Sequence[Region] = ()
    ) -> Iterator[ForwardPass]:
        """The forwards of any number of sequences, one micro-batch after another."""
        for indices in self.plan(sequences, token_budget):
            batch = self.collate(sequences, indices)
            yield ForwardPass(batch, *self(batch, regions))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that an optimizer should see."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


@torch.no_grad()
def collect(sequences: Sequence[TextSequence], passes: Iterable[ForwardPass]) -> Scored:
    """What the passes over `sequences` say, in the order of `sequences`, without gradients."""
    longest = max(len(sequence.completion_ids) for sequence in sequences)
    logprobs = mask = None
    pieces: dict[Region, dict[int, Tensor]] = {}
    for forward in passes:
        batch, device = forward.batch, forward.logprobs.device
        if logprobs is None or mask is None:
            logprobs = torch.zeros(len(sequences), longest, device=device)
            mask = torch.zeros(len(sequences), longest, dtype=torch.bool, device=device)
        rows = torch.tensor(batch.indices, device=device)[batch.owners]
        logprobs[rows, batch.offsets] = forward.logprobs.detach()
        mask[rows, batch.offsets] = True
        for region, embeddings in forward.embeddings.items():
            pieces.setdefault(region, {}).update(zip(batch.indices, embeddings, strict=True))
    assert logprobs is not None and mask is not None
    ordered = {region: torch.stack([found[i] for i in range(len(sequences))]) for region, found in pieces.items()}
    return Scored(ordered, logprobs, mask)


@contextmanager
def _recorded_layer(model: "PreTrainedModel", layer: int) -> Iterator[list[Tensor]]:
    """Collects `hidden_states[layer]` (transformers' numbering) of the next forward, unless it is the last."""
    decoder: Any = model.get_decoder()
    count = len(decoder.layers)
    index = layer % (count + 1)
    recorded: list[Tensor] = []
    if index == count:
        yield recorded
        return

    def record(_module: nn.Module, _args: Any, output: Any) -> None:
        recorded.append(output[0] if isinstance(output, tuple) else output)

    module = decoder.embed_tokens if index == 0 else decoder.layers[index - 1]
    handle = module.register_forward_hook(record)
    try:
        yield recorded
    finally:
        handle.remove()
