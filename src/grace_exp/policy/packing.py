"""Rows for one forward: a prompt once, then all its rationales behind a block mask.

The K rationales of a group continue the same prompt. In K padded rows the prompt would be computed K times. A packed
row is [prompt, rationale 1 .. K]. The positions of each rationale start behind the prompt. A rationale attends to the
prompt and to itself only. The result is that of K separate rows. The first tokens that all rows of a micro-batch share
(the chat template and the system prompt) can be computed once, too.

The capitals behind a tensor's name are its dimensions; CONTRIBUTING.md lists them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor

from grace_exp.data.prompts import Prompt

Region = Literal["text_and_rationale", "rationale", "text"]


@dataclass(frozen=True, slots=True)
class TextSequence:
    """A prompt and the rationale written to it.

    Attributes:
        prompt: The prompt.
        completion_ids: Rationale tokens, end token included; empty for the prompt alone.
        temperature: Sampling temperature of the rationale; its log-probs are those of softmax(logits / temperature).
    """

    prompt: Prompt
    completion_ids: tuple[int, ...] = ()
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: Prompt
    members: list[int]
    length: int


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward: rows of `width` tokens that hold `n` sequences.

    Attributes:
        indices: Position of each sequence in the list that was packed, [n].
        input_ids_BL: Token ids, [rows, width].
        position_ids_BL: Their positions, [rows, width].
        block_BL: What a token belongs to, [rows, width]: 0 the prompt, k the k-th rationale of the row, -1 padding.
        packed: Whether a row holds more than one rationale, so that `attention_mask` is needed.
        head: Number of first tokens that all rows share and that are computed once; 0: every row is computed whole.
        rows_N: Row of each sequence, [n].
        slots_N: `block_BL` of each sequence's rationale in its row, [n].
        in_text_BL: Which tokens are pooled prompt tokens, [rows, width] bool.
        predictors_P: For each rationale token, the index of the token before it in the flattened [rows * width],
            [tokens].
        targets_P: The rationale tokens, [tokens].
        temperatures_P: Their sampling temperatures, [tokens].
        owners_P: The sequence (0 .. n-1) of each rationale token, [tokens].
        offsets_P: The place of each rationale token in its rationale, [tokens].
        tokens: Number of tokens in all rows, without padding.
        pairs: About the number of pairs of a token and one that it attends to.
    """

    indices: list[int]
    input_ids_BL: Tensor
    position_ids_BL: Tensor
    block_BL: Tensor
    packed: bool
    head: int
    rows_N: Tensor
    slots_N: Tensor
    in_text_BL: Tensor
    predictors_P: Tensor
    targets_P: Tensor
    temperatures_P: Tensor
    owners_P: Tensor
    offsets_P: Tensor
    tokens: int
    pairs: float

    @property
    def n(self) -> int:
        """Number of sequences."""
        return len(self.indices)

    def attention_mask(self) -> Tensor | None:
        """Which tokens each token behind the head attends to, [rows, 1, width - head, width] bool.

        None: plain causal attention is enough. Padding stands at the end of a row, where causal attention hides it from
        every real token.
        """
        if not self.packed and not self.head:
            return None
        query, key_B1L = self.block_BL[:, self.head :, None], self.block_BL[:, None, :]
        width = self.block_BL.shape[1]
        causal_LL = torch.ones(width, width, dtype=torch.bool, device=self.block_BL.device).tril()
        return (causal_LL[self.head :] & ((key_B1L == 0) | (key_B1L == query)))[:, None]

    def without_targets(self) -> "MicroBatch":
        """The same rows without rationale tokens to predict, so that the output head computes nothing."""
        names = ("predictors_P", "targets_P", "temperatures_P", "owners_P", "offsets_P")
        return replace(self, **{name: getattr(self, name)[:0] for name in names})

    def membership(self, region: Region) -> Tensor:
        """Which tokens each sequence's embedding is pooled over, [n, width] bool."""
        rationale_NL = self.block_BL[self.rows_N] == self.slots_N[:, None]
        text_NL = self.in_text_BL[self.rows_N]
        return {"text": text_NL, "rationale": rationale_NL, "text_and_rationale": text_NL | rationale_NL}[region]

    def ragged(self, values_P: Tensor) -> tuple[Tensor, Tensor]:
        """Values per rationale token [tokens] as rows [n, longest], 0 behind the end, and the mask of real ones."""
        longest = int(self.offsets_P.max()) + 1 if len(self.offsets_P) else 0
        mask_NT = torch.zeros(self.n, longest, dtype=torch.bool, device=values_P.device)
        mask_NT[self.owners_P, self.offsets_P] = True
        padded_NT = values_P.new_zeros(self.n, longest)
        return torch.index_put(padded_NT, (self.owners_P, self.offsets_P), values_P), mask_NT


def pack(
    sequences: Sequence[TextSequence], *, share_prompts: bool, token_budget: int, max_row_tokens: int, pad_to: int = 1
) -> list[list[int]]:
    """A plan of micro-batches: lists of sequence indices whose rows fit `token_budget`.

    A sequence longer than the budget gets a micro-batch of its own.

    Args:
        sequences: What to plan for.
        share_prompts: Whether the rationales of one prompt share a row.
        token_budget: Most tokens of a micro-batch: rows x padded width.
        max_row_tokens: Most tokens of a row that holds several rationales.
        pad_to: Widths are multiples of it.
    """
    return [
        [member for row in rows for member in row.members]
        for rows in _micro_batches(_rows(sequences, share_prompts, max_row_tokens), token_budget, pad_to)
    ]


def _rows(sequences: Sequence[TextSequence], share_prompts: bool, max_row_tokens: int) -> list[_Row]:
    by_prompt: dict[object, list[int]] = {}
    for index, sequence in enumerate(sequences):
        by_prompt.setdefault(sequence.prompt if share_prompts else index, []).append(index)
    rows = []
    for members in by_prompt.values():
        # Ascending: what did not fit into a row fits into no earlier one. So a part of a plan is laid out as planned.
        members.sort(key=lambda member: len(sequences[member].completion_ids))
        prompt = sequences[members[0]].prompt
        row: list[int] = []
        length = len(prompt.token_ids)
        for member in members:
            extra = len(sequences[member].completion_ids)
            if row and length + extra > max_row_tokens:
                rows.append(_Row(prompt, row, length))
                row, length = [], len(prompt.token_ids)
            row.append(member)
            length += extra
        rows.append(_Row(prompt, row, length))
    return rows


def _micro_batches(rows: list[_Row], token_budget: int, pad_to: int) -> list[list[_Row]]:
    # Rows that need the block mask stay among themselves. Rows of similar length stand together: little is padding.
    ordered = sorted(rows, key=lambda row: (len(row.members) == 1, -row.length))
    batches: list[list[_Row]] = []
    for row in ordered:
        last = batches[-1] if batches else None
        if (
            last is not None
            and (len(last[0].members) == 1) == (len(row.members) == 1)
            and (len(last) + 1) * _padded(last[0].length, pad_to) <= token_budget
        ):
            last.append(row)
        else:
            batches.append([row])
    return batches


def _padded(length: int, pad_to: int) -> int:
    return -(-length // pad_to) * pad_to


def collate(
    sequences: Sequence[TextSequence],
    indices: Sequence[int],
    *,
    share_prompts: bool,
    share_head: bool,
    max_row_tokens: int,
    pad_token_id: int,
    device: torch.device,
    pad_to: int = 1,
) -> MicroBatch:
    """The tensors of one micro-batch.

    Args:
        sequences: What was planned.
        indices: One entry of `pack`'s plan.
        share_prompts: As in `pack`.
        share_head: Whether the first tokens that all rows share are to be computed once.
        max_row_tokens: As in `pack`.
        pad_token_id: Fills shorter rows.
        device: Of the tensors.
        pad_to: As in `pack`.
    """
    chosen = [sequences[index] for index in indices]
    rows = _rows(chosen, share_prompts, max_row_tokens)
    width = _padded(max(row.length for row in rows), pad_to)
    shape = (len(rows), width)
    ids_BL = torch.full(shape, pad_token_id)
    # Positions go on through the padding: transformers takes a restart for packed texts and avoids its causal kernels.
    positions_BL = torch.arange(width).repeat(len(rows), 1)
    block_BL = torch.full(shape, -1)
    in_text_BL = torch.zeros(shape, dtype=torch.bool)
    row_N, slot_N = torch.zeros(len(chosen), dtype=torch.long), torch.zeros(len(chosen), dtype=torch.long)
    predictors: list[Tensor] = []
    owners: list[Tensor] = []
    offsets: list[Tensor] = []
    for number, row in enumerate(rows):
        prompt_length = len(row.prompt.token_ids)
        ids_BL[number, :prompt_length] = torch.tensor(row.prompt.token_ids)
        block_BL[number, :prompt_length] = 0
        in_text_BL[number, row.prompt.pool_start : prompt_length] = True
        start = prompt_length
        for slot, member in enumerate(row.members, start=1):
            completion_ids = torch.tensor(chosen[member].completion_ids, dtype=torch.long)
            length = len(completion_ids)
            steps = torch.arange(length)
            ids_BL[number, start : start + length] = completion_ids
            positions_BL[number, start : start + length] = prompt_length + steps
            block_BL[number, start : start + length] = slot
            row_N[member], slot_N[member] = number, slot
            # The prompt's last token predicts the first rationale token, and each rationale token the next one.
            before = torch.where(steps == 0, prompt_length - 1, start + steps - 1)
            predictors.append(number * width + before)
            owners.append(torch.full((length,), member))
            offsets.append(steps)
            start += length
    owners_P, offsets_P = torch.cat(owners), torch.cat(offsets)
    order = [member for row in rows for member in row.members]
    targets_P = torch.tensor([t for m in order for t in chosen[m].completion_ids], dtype=torch.long)
    # Greedy rationales have no tempered distribution. Their log-probs are those of temperature 1, as engines report.
    temperatures_P = torch.tensor([chosen[m].temperature or 1.0 for m in range(len(chosen))])[owners_P]
    return MicroBatch(
        indices=list(indices),
        input_ids_BL=ids_BL.to(device),
        position_ids_BL=positions_BL.to(device),
        block_BL=block_BL.to(device),
        packed=any(len(row.members) > 1 for row in rows),
        head=_common_head(rows) if share_head else 0,
        rows_N=row_N.to(device),
        slots_N=slot_N.to(device),
        in_text_BL=in_text_BL.to(device),
        predictors_P=torch.cat(predictors).to(device),
        targets_P=targets_P.to(device),
        temperatures_P=temperatures_P.to(device),
        owners_P=owners_P.to(device),
        offsets_P=offsets_P.to(device),
        tokens=sum(row.length for row in rows),
        pairs=sum(_pairs(row, chosen) for row in rows),
    )


def _pairs(row: _Row, sequences: Sequence[TextSequence]) -> float:
    """Pairs of a token and one that it attends to: half of a square for the prompt, and for each rationale."""
    prompt = len(row.prompt.token_ids)
    lengths = [len(sequences[member].completion_ids) for member in row.members]
    return prompt**2 / 2 + sum(length * prompt + length**2 / 2 for length in lengths)


def idle_batch(pad_token_id: int, device: torch.device) -> MicroBatch:
    """A row of one token that holds no sequence: its forward and its backward pass change nothing."""
    row = collate(
        [TextSequence(Prompt((pad_token_id,), 0))],
        [0],
        share_prompts=False,
        share_head=False,
        max_row_tokens=1,
        pad_token_id=pad_token_id,
        device=device,
    )
    return replace(row, indices=[], rows_N=row.rows_N[:0], slots_N=row.slots_N[:0], tokens=0, pairs=0.0)


def _common_head(rows: list[_Row]) -> int:
    """Number of tokens that all prompts begin with. A prompt's last token predicts, and is not among them."""
    if len(rows) == 1:
        return 0
    columns = zip(*(row.prompt.token_ids[:-1] for row in rows), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
