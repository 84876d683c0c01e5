"""How far training moved the language model: perplexity, and the divergence between its distributions and the base's.

Texts are read as plain text in the tokenizer's default form (with a start token if it adds one); the first token is not
predicted. Both models read the same tokens (teacher forcing). Whole distributions are compared, in float32.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from grace_exp.evaluation.general.compared_model import BASE, TRAINED, ComparedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ProbeResult:
    """Sums over the tokens of each text, in nats, so that differences can be resampled later.

    Attributes:
        tokens: Predicted tokens of each text, [texts]; 0 for a text of one token.
        nll: Negative log-likelihood of the text's tokens, by model, each [texts].
        kl: Divergences `KL(P || Q)` = sum of P log(P / Q) over the vocabulary, by `(P, Q)`, each [texts]; empty for a
            single model.
    """

    tokens: list[int]
    nll: dict[str, list[float]]
    kl: dict[tuple[str, str], list[float]]

    def perplexity(self, compared: str) -> float:
        """Return the perplexity of a token: exp of the mean negative log-likelihood."""
        return math.exp(sum(self.nll[compared]) / sum(self.tokens))

    def mean_kl(self, pair: tuple[str, str]) -> float:
        """Return the mean divergence per token, nats."""
        return sum(self.kl[pair]) / sum(self.tokens)


@torch.no_grad()
def probe(
    texts: Sequence[str],
    models: Mapping[str, ComparedModel],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    batch_tokens: int,
    chunk: int,
) -> ProbeResult:
    """Read texts with every model.

    Args:
        texts: The texts.
        models: `base`, or `base` and `trained`; in evaluation mode, with the same tokenizer.
        tokenizer: The tokenizer of all models.
        batch_tokens: Tokens of a forward, padding included.
        chunk: Positions whose logits exist at a time: chunk x vocabulary x 4 bytes per model.
    """
    sequences: list[list[int]] = [tokenizer.encode(text) for text in texts]
    pairs = [(BASE, TRAINED), (TRAINED, BASE)] if TRAINED in models else []
    nll = {name: torch.zeros(len(texts), dtype=torch.float64) for name in models}
    kl = {pair: torch.zeros(len(texts), dtype=torch.float64) for pair in pairs}
    device = next(iter(models.values())).model.device
    for indices in _batches(sequences, batch_tokens):
        ids = _padded([sequences[i] for i in indices]).to(device)
        lengths = torch.tensor([len(sequences[i]) - 1 for i in indices], device=device)
        wanted = torch.arange(ids.shape[1] - 1, device=device) < lengths[:, None]
        targets = ids[:, 1:][wanted]
        owners = torch.tensor(indices).repeat_interleave(lengths.cpu())
        hidden = {name: _hidden_states(compared, ids)[:, :-1][wanted] for name, compared in models.items()}
        for part in torch.arange(len(targets)).split(chunk):
            logprobs = {name: _logprobs(compared, hidden[name][part]) for name, compared in models.items()}
            part_owners = owners[part]
            for name, values in logprobs.items():
                chosen = values.gather(1, targets[part, None]).squeeze(1)
                nll[name].index_add_(0, part_owners, -chosen.double().cpu())
            for p, q in pairs:
                divergence = kl_div(logprobs[q], logprobs[p], reduction="none", log_target=True).sum(dim=-1)
                kl[p, q].index_add_(0, part_owners, divergence.double().cpu())
    return ProbeResult(
        [len(sequence) - 1 for sequence in sequences],
        {name: values.tolist() for name, values in nll.items()},
        {pair: values.tolist() for pair, values in kl.items()},
    )


def _batches(sequences: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of sequences of similar length, as many as fit; at least one."""
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        if batch and (len(batch) + 1) * len(sequences[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return rows padded at the end, [rows, width]; no real token attends to the padding, so any token will do."""
    width = max(map(len, sequences))
    return torch.tensor([[*sequence, *[sequence[0]] * (width - len(sequence))] for sequence in sequences])


def _hidden_states(compared: ComparedModel, ids: Tensor) -> Tensor:
    """Return the final hidden states [rows, width, hidden]."""
    decoder: Any = compared.model.get_decoder()
    with compared.active():
        hidden: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def _logprobs(compared: ComparedModel, hidden: Tensor) -> Tensor:
    """Return the log-probs over the vocabulary, float32 [positions, vocabulary]."""
    head: Any = compared.model.get_output_embeddings()
    with compared.active():
        logits: Tensor = head(hidden)
    return logits.float().log_softmax(dim=-1)
