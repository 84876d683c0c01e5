"""Rows for one forward: a prompt once, then all its rationales behind a block mask.

The K rationales of a group continue the same prompt. Padded, the prompt would be computed K times; packed, a row is
[prompt, rationale 1 .. K], the position of every rationale starts again behind the prompt, and a rationale attends to
the prompt and to itself only. The result is that of K separate rows. What all rows of a micro-batch begin with (the
chat template and the system prompt) can be computed once, too.
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
        temperature: At which the rationale was sampled; its log-probs are those of softmax(logits / temperature).
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
    """Tensors of one forward over `rows` rows of `width` tokens holding `n` sequences.

    Attributes:
        indices: Position of each sequence in the list that was packed, [n].
        input_ids: [rows, width].
        position_ids: [rows, width].
        block: What a token belongs to, [rows, width]: 0 the prompt, k the k-th rationale of the row, -1 padding.
        packed: Whether a row holds more than one rationale, so that `attention_mask` is needed.
        head: Leading tokens that are the same in every row and computed once; 0: every row is computed whole.
        rows: Row of each sequence, [n].
        slots: `block` of each sequence's rationale in its row, [n].
        in_text: Pooled prompt tokens, [rows, width] bool.
        predictors: Where in the flattened [rows * width] the token before each rationale token stands, [tokens].
        targets: The rationale tokens, [tokens].
        temperatures: Their sampling temperatures, [tokens].
        owners: The sequence (0 .. n-1) of each, [tokens].
        offsets: Its place within the rationale, [tokens].
        tokens: Of all rows, without padding.
        pairs: Of a token and one that it attends to, about.
    """

    indices: list[int]
    input_ids: Tensor
    position_ids: Tensor
    block: Tensor
    packed: bool
    head: int
    rows: Tensor
    slots: Tensor
    in_text: Tensor
    predictors: Tensor
    targets: Tensor
    temperatures: Tensor
    owners: Tensor
    offsets: Tensor
    tokens: int
    pairs: float

    @property
    def n(self) -> int:
        """Number of sequences."""
        return len(self.indices)

    def attention_mask(self) -> Tensor | None:
        """[rows, 1, width - head, width] bool: where a token behind the head may look; None: plain causal attention.

        Padding stands at the end of its row, where causal attention hides it from every real token.
        """
        if not self.packed and not self.head:
            return None
        query, key = self.block[:, self.head :, None], self.block[:, None, :]
        causal = torch.ones(self.block.shape[1], self.block.shape[1], dtype=torch.bool, device=self.block.device).tril()
        return (causal[self.head :] & ((key == 0) | (key == query)))[:, None]

    def without_targets(self) -> "MicroBatch":
        """The same rows, of which nothing is asked of the output head."""
        names = ("predictors", "targets", "temperatures", "owners", "offsets")
        return replace(self, **{name: getattr(self, name)[:0] for name in names})

    def membership(self, region: Region) -> Tensor:
        """Tokens that each sequence's embedding is pooled over, [n, width] bool."""
        rationale = self.block[self.rows] == self.slots[:, None]
        text = self.in_text[self.rows]
        return {"text": text, "rationale": rationale, "text_and_rationale": text | rationale}[region]

    def ragged(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Values per rationale token [tokens] as rows [n, longest], and the mask of real ones."""
        longest = int(self.offsets.max()) + 1 if len(self.offsets) else 0
        mask = torch.zeros(self.n, longest, dtype=torch.bool, device=flat.device)
        mask[self.owners, self.offsets] = True
        padded = flat.new_zeros(self.n, longest)
        return torch.index_put(padded, (self.owners, self.offsets), flat), mask


def pack(
    sequences: Sequence[TextSequence], *, share_prompts: bool, token_budget: int, max_row_tokens: int, pad_to: int = 1
) -> list[list[int]]:
    """Plan micro-batches: lists of sequence indices whose rows fit `token_budget` (rows x padded width).

    A sequence longer than the budget gets a micro-batch of its own.
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
        # Ascending: what did not fit into a row fits into no earlier one, so any part of a plan is laid out as planned.
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
    # Rows that need the block mask stay among themselves; then by length, so that little is padding.
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
    """Tensors for the sequences `indices` (one entry of `pack`'s plan); widths are multiples of `pad_to`."""
    chosen = [sequences[index] for index in indices]
    rows = _rows(chosen, share_prompts, max_row_tokens)
    width = _padded(max(row.length for row in rows), pad_to)
    shape = (len(rows), width)
    ids = torch.full(shape, pad_token_id)
    # Counted on through the padding: transformers takes a restart for packed texts and leaves its fast causal kernels.
    positions = torch.arange(width).repeat(len(rows), 1)
    block = torch.full(shape, -1)
    in_text = torch.zeros(shape, dtype=torch.bool)
    row_of, slot_of = torch.zeros(len(chosen), dtype=torch.long), torch.zeros(len(chosen), dtype=torch.long)
    predictors: list[Tensor] = []
    owners: list[Tensor] = []
    offsets: list[Tensor] = []
    for number, row in enumerate(rows):
        prompt_length = len(row.prompt.token_ids)
        ids[number, :prompt_length] = torch.tensor(row.prompt.token_ids)
        block[number, :prompt_length] = 0
        in_text[number, row.prompt.pool_start : prompt_length] = True
        start = prompt_length
        for slot, member in enumerate(row.members, start=1):
            completion = torch.tensor(chosen[member].completion_ids, dtype=torch.long)
            length = len(completion)
            steps = torch.arange(length)
            ids[number, start : start + length] = completion
            positions[number, start : start + length] = prompt_length + steps
            block[number, start : start + length] = slot
            row_of[member], slot_of[member] = number, slot
            # The first rationale token is predicted at the end of the prompt, the others at the token before.
            before = torch.where(steps == 0, prompt_length - 1, start + steps - 1)
            predictors.append(number * width + before)
            owners.append(torch.full((length,), member))
            offsets.append(steps)
            start += length
    owner, offset = torch.cat(owners), torch.cat(offsets)
    order = [member for row in rows for member in row.members]
    targets = torch.tensor([t for m in order for t in chosen[m].completion_ids], dtype=torch.long)
    # Greedy rationales have no tempered distribution; their log-probs are those of temperature 1, as engines report.
    temperatures = torch.tensor([chosen[m].temperature or 1.0 for m in range(len(chosen))])[owner]
    return MicroBatch(
        indices=list(indices),
        input_ids=ids.to(device),
        position_ids=positions.to(device),
        block=block.to(device),
        packed=any(len(row.members) > 1 for row in rows),
        head=_common_head(rows) if share_head else 0,
        rows=row_of.to(device),
        slots=slot_of.to(device),
        in_text=in_text.to(device),
        predictors=torch.cat(predictors).to(device),
        targets=targets.to(device),
        temperatures=temperatures.to(device),
        owners=owner.to(device),
        offsets=offset.to(device),
        tokens=sum(row.length for row in rows),
        pairs=sum(_pairs(row, chosen) for row in rows),
    )


def _pairs(row: _Row, sequences: Sequence[TextSequence]) -> float:
    """Of a token and one that it attends to: half of a square for the prompt, and for each rationale."""
    prompt = len(row.prompt.token_ids)
    lengths = [len(sequences[member].completion_ids) for member in row.members]
    return prompt**2 / 2 + sum(length * prompt + length**2 / 2 for length in lengths)


def idle_batch(pad_token_id: int, device: torch.device) -> MicroBatch:
    """A row of one token that holds no sequence: a forward and a backward pass that change nothing."""
    row = collate(
        [TextSequence(Prompt((pad_token_id,), 0))],
        [0],
        share_prompts=False,
        share_head=False,
        max_row_tokens=1,
        pad_token_id=pad_token_id,
        device=device,
    )
    return replace(row, indices=[], rows=row.rows[:0], slots=row.slots[:0], tokens=0, pairs=0.0)


def _common_head(rows: list[_Row]) -> int:
    """Number of tokens that all prompts begin with; their last tokens predict and stay outside."""
    if len(rows) == 1:
        return 0
    columns = zip(*(row.prompt.token_ids[:-1] for row in rows), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
