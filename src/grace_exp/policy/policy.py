"""The policy: a language model that gives embeddings and log-probs in one forward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from grace_exp.config.backbone import PoolingConfig
from grace_exp.config.hardware import HardwareConfig
from grace_exp.errors import ConfigError
from grace_exp.policy.compiled_layers import compile_layers
from grace_exp.policy.forward_pass import ForwardPass, Scored, collect
from grace_exp.policy.grouped_attention import register_grouped_attention, use_grouped_attention
from grace_exp.policy.layer_states import recorded_layer
from grace_exp.policy.logprobs import token_logprobs, token_logprobs_and_entropy
from grace_exp.policy.one_pass import OnePass
from grace_exp.policy.onednn_linear import resolved_library, use_library
from grace_exp.policy.output_head import compute_dtype, use_float32_head
from grace_exp.policy.packing import MicroBatch, Region, TextSequence, collate, idle_batch, pack
from grace_exp.policy.pooling import pool
from grace_exp.policy.random_state import RandomState
from grace_exp.policy.sharding import most_of_all_processes, shard
from grace_exp.policy.work_counter import WorkCounter

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel


class Policy(LightningModule):
    """A causal language model, with or without adapters, that gives embeddings and log-probs in one forward."""

    def __init__(
        self, model: "PreTrainedModel", pooling: PoolingConfig, hardware: HardwareConfig, *, pad_token_id: int
    ) -> None:
        """Check that the model can be read this way, and prepare its layers.

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
        self.library = resolved_library(hardware.linear)
        """The library of float32 matrix products on a CPU."""
        use_float32_head(self.causal_lm, self.library)
        use_library(self.causal_lm, self.library)
        if hardware.accelerator == "cpu":
            use_grouped_attention(self.causal_lm)
        self._packing_checked = False
        if hardware.packing and hardware.packed_attention == "flex":
            from grace_exp.policy.attention import use_flex_for_block_masks

            use_flex_for_block_masks(self.causal_lm)
        if hardware.compile:
            compile_layers(self.causal_lm)
        self.pooling = pooling
        self.hardware = hardware
        self.pad_token_id = pad_token_id
        self.scored, self.trained = WorkCounter(), WorkCounter()
        """What was computed without and with gradients."""
        self.one_pass = OnePass(self, hardware.one_pass)
        """Embeddings from hidden states that an engine pooled while it wrote."""
        self.sharded = False
        """Whether each process holds only a part of the weights."""
        config = model.config.get_text_config()
        for setting in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
            if getattr(config, setting, None) not in (None, 1, 1.0):
                raise ConfigError(f"backbone: models with {setting} are not supported ({config.model_type})")
        layers = config.num_hidden_layers
        if not -layers - 1 <= pooling.layer <= layers:
            raise ConfigError(
                f"backbone.pooling.layer = {pooling.layer}: the model has {layers} layers, so {-layers - 1} to {layers}"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Register the attention in a process that was sent a policy."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register_grouped_attention()

    @property
    def causal_lm(self) -> "PreTrainedModel":
        """The language model below any adapters' wrapper; adapters stay active inside it."""
        from peft import PeftModel

        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def shard(self, mesh: "DeviceMesh") -> None:
        """Keep only this process's part of the weights; see `policy.sharding`."""
        shard(self, mesh)
        self.sharded = True

    @property
    def _counter(self) -> WorkCounter:
        return self.trained if torch.is_grad_enabled() else self.scored

    @property
    def _checkpoints_gradients(self) -> bool:
        """Whether the backward pass computes layers again, which excludes a cache."""
        return self.model.training and self.causal_lm.is_gradient_checkpointing

    def plan(self, sequences: Sequence[TextSequence], token_budget: int) -> list[list[int]]:
        """Return the indices of `sequences` per micro-batch.

        With a sharded policy all processes call it and get plans of the same length. A process that has fewer
        micro-batches gets empty ones in front of them.
        """
        plan = pack(
            sequences,
            share_prompts=self.hardware.packing,
            token_budget=token_budget,
            max_row_tokens=self.hardware.max_row_tokens,
            pad_to=self.hardware.pad_to,
        )
        if self.sharded:
            most = most_of_all_processes(len(plan), self.model.device)
            plan = [[] for _ in range(most - len(plan))] + plan
        return plan

    def collate(self, sequences: Sequence[TextSequence], indices: Sequence[int]) -> MicroBatch:
        """Return the tensors of one micro-batch of a plan."""
        if not indices:
            return idle_batch(self.pad_token_id, self.model.device)
        # A head is a forward of its own, of which sharded processes would run different numbers.
        share_head = self.hardware.share_head and not self._checkpoints_gradients and not self.sharded
        return collate(
            sequences,
            indices,
            share_prompts=self.hardware.packing,
            share_head=share_head,
            max_row_tokens=self.hardware.max_row_tokens,
            pad_token_id=self.pad_token_id,
            device=self.model.device,
            pad_to=self.hardware.pad_to,
        )

    def forward(
        self,
        batch: MicroBatch,
        regions: Sequence[Region] = (),
        *,
        embedding_gradients: bool = False,
        entropy: bool = False,
    ) -> tuple[dict[Region, Tensor], Tensor, Tensor | None]:
        """One forward.

        Args:
            batch: Rows to compute.
            regions: Regions to pool.
            embedding_gradients: Whether the embeddings carry a gradient; in GRACE none flows through them.
            entropy: Whether to compute it, which costs a softmax of the logits.

        Returns:
            Embeddings per region, float32 [n, hidden]; the log-probs of the rationale tokens, flat [tokens]; and, if
            asked for, the entropies of the distributions they were drawn from, flat [tokens].
        """
        last_BLH, pooled_BLH = self._hidden_states(batch, self.pooling.layer if regions else -1)
        embeddings = self._pool(pooled_BLH if embedding_gradients else pooled_BLH.detach(), batch, regions)
        if not len(batch.targets_P) and not torch.is_grad_enabled():
            nothing_P = torch.zeros(0, device=last_BLH.device)
            return embeddings, nothing_P, nothing_P if entropy else None
        read = (
            last_BLH.flatten(0, 1)[batch.predictors_P],
            batch.targets_P,
            batch.temperatures_P,
            self.causal_lm.get_output_embeddings(),
        )
        chunk = self.hardware.logprob_chunk_tokens
        self._counter.add(targets=len(batch.targets_P))
        if entropy:
            return embeddings, *token_logprobs_and_entropy(*read, chunk=chunk)
        return embeddings, token_logprobs(*read, chunk=chunk), None

    def _pool(self, hidden_BLH: Tensor, batch: MicroBatch, regions: Sequence[Region]) -> dict[Region, Tensor]:
        return {region: pool(hidden_BLH, batch, region=region, method=self.pooling.method) for region in regions}

    def _hidden_states(self, batch: MicroBatch, layer: int) -> tuple[Tensor, Tensor]:
        """Hidden states behind the last layer and behind `layer`, each [rows, width, hidden]."""
        self._counter.add(batch.tokens, batch.pairs)
        decoder: Any = self.causal_lm.get_decoder()
        mask = self._mask(batch)
        if isinstance(mask, Tensor) and self.model.config._attn_implementation == "eager":
            # The eager path adds its mask to the scores.
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)
        head, cache = batch.head, None
        with recorded_layer(self.causal_lm, layer) as recorded:
            last = []
            if head:
                from transformers import DynamicCache

                cache = DynamicCache(config=self.model.config)
                read = decoder(input_ids=batch.input_ids_BL[:1, :head], past_key_values=cache, use_cache=True)
                last.append(read.last_hidden_state)
                cache.batch_repeat_interleave(len(batch.input_ids_BL))
            read = decoder(
                input_ids=batch.input_ids_BL[:, head:],
                position_ids=batch.position_ids_BL[:, head:],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,  # nothing is decoded: only for what rows share
            )
            last.append(read.last_hidden_state)
        last_BLH = _behind_head(last)
        return last_BLH, _behind_head(recorded) if recorded else last_BLH

    def _mask(self, batch: MicroBatch) -> "Tensor | BlockMask | None":
        """Return which tokens each token attends to. The first packed rows are compared with plain rows."""
        if not (batch.packed and self.hardware.packed_attention == "flex"):
            return batch.attention_mask()
        from grace_exp.policy.attention import block_mask
        from grace_exp.policy.packed_check import check_packed_row

        if not self._packing_checked:
            self._packing_checked = True
            decoder: Any = self.causal_lm.get_decoder()
            with self._evaluating(), torch.no_grad():
                check_packed_row(
                    batch,
                    lambda **rows: decoder(**rows, use_cache=False).last_hidden_state,
                    dtype=compute_dtype(self.model.device.type, self.model.dtype),
                )
        return block_mask(batch.block_BL)

    @torch.no_grad()
    def score(self, sequences: Sequence[TextSequence], regions: Sequence[Region] | None = None) -> Scored:
        """Return embeddings and log-probs of any number of sequences, without gradients.

        Args:
            sequences: What to score; equal prompts are computed once.
            regions: Pooled regions; None: the configured one.
        """
        with self._evaluating():
            return collect(
                sequences, self.passes(sequences, self.hardware.score_budget, regions or (self.pooling.region,))
            )

    @torch.no_grad()
    def embed(self, sequences: Sequence[TextSequence], regions: Sequence[Region] = ()) -> dict[Region, Tensor]:
        """Return the embeddings alone, by region float32 [n, hidden]: as `score`, without the output head."""
        found: dict[Region, dict[int, Tensor]] = {}
        with self._evaluating():
            plan = self.plan(sequences, self.hardware.score_budget)
            for indices in plan:
                for region, embeddings_NH in self.embedding_pass(sequences, indices, regions).items():
                    found.setdefault(region, {}).update(zip(indices, embeddings_NH, strict=True))
        return {region: torch.stack([rows[i] for i in range(len(sequences))]) for region, rows in found.items()}

    @torch.no_grad()
    def token_states(self, sequence: TextSequence, region: Region | None = None) -> tuple[Tensor, Tensor]:
        """Return the hidden states whose mean is the embedding of one sequence.

        Args:
            sequence: Prompt and rationale.
            region: The pooled region; None: the configured one.

        Returns:
            Hidden states float32 [tokens, hidden], and their positions in prompt + rationale [tokens].
        """
        with self._evaluating():
            batch = self.collate([sequence], [0])
            _, hidden_BLH = self._hidden_states(batch, self.pooling.layer)
        member_L = batch.membership(region or self.pooling.region)[0]
        return hidden_BLH[0][member_L].float(), batch.position_ids_BL[0][member_L]

    def embedding_pass(
        self, sequences: Sequence[TextSequence], indices: Sequence[int], regions: Sequence[Region] = ()
    ) -> dict[Region, Tensor]:
        """One forward without the output head, in the mode that the model is in; with gradients where they are on.

        Args:
            sequences: What was planned.
            indices: A micro-batch of the plan.
            regions: Pooled regions; none: the configured one.

        Returns:
            Per region, float32 [n, hidden] in the order of `indices`.
        """
        batch = self.collate(sequences, indices).without_targets()
        embeddings: dict[Region, Tensor] = self(
            batch, regions or (self.pooling.region,), embedding_gradients=torch.is_grad_enabled()
        )[0]
        return embeddings

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No dropout, no gradient checkpointing."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def passes(
        self,
        sequences: Sequence[TextSequence],
        token_budget: int,
        regions: Sequence[Region] = (),
        *,
        embedding_gradients: bool = False,
        entropy: bool = False,
    ) -> Iterator[ForwardPass]:
        """Yield the forwards of any number of sequences, one micro-batch after another."""
        plan = self.plan(sequences, token_budget)
        return self.planned_passes(sequences, plan, regions, embedding_gradients=embedding_gradients, entropy=entropy)

    def planned_passes(
        self,
        sequences: Sequence[TextSequence],
        plan: Sequence[Sequence[int]],
        regions: Sequence[Region] = (),
        *,
        embedding_gradients: bool = False,
        entropy: bool = False,
        states: Sequence[RandomState] = (),
    ) -> Iterator[ForwardPass]:
        """Yield the forwards of a plan of `sequences`.

        Args:
            sequences: What was planned.
            plan: Indices per micro-batch.
            regions: Regions to pool.
            embedding_gradients: As in `forward`.
            entropy: As in `forward`.
            states: For each micro-batch, the random state to compute it from; none: as it stands.
        """
        for number, indices in enumerate(plan):
            batch = self.collate(sequences, indices)
            with states[number].restored() if states else nullcontext():
                found = self(batch, regions, embedding_gradients=embedding_gradients, entropy=entropy)
            yield ForwardPass(batch, *found)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def _behind_head(parts: list[Tensor]) -> Tensor:
    """Hidden states of the head [1, head, hidden], if it was read apart, before those of every row."""
    *head, rest = parts
    return torch.cat([*(part.expand(len(rest), -1, -1) for part in head), rest], dim=1)
