"""GRACE (arXiv 2510.04506) on one page: texts, rationales, one forward, rewards, advantages, update.

python examples/grace_in_one_file.py                          a tiny random model: seconds on a CPU
python examples/grace_in_one_file.py --model smollm2          SmolLM2-135M
python examples/grace_in_one_file.py --model path/or/hub-name --data triplets.jsonl

It uses torch, transformers and the project's pure functions for reward and objective. A test shows that one step here
and one step of the framework give the same weights (tests/integration/test_examples.py). The framework adds packing,
engines, several processes, checkpoints, evaluation and logging.
"""

import argparse
import json
import zlib
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grace_exp.config.objective import ObjectiveConfig
from grace_exp.config.reward import (
    HardNegativeConfig,
    NegativeConfig,
    RewardConfig,
    TermConfig,
    TermsConfig,
    TruncationConfig,
)
from grace_exp.objective import ALGORITHMS, AdvantageInputs, LossInputs, compute_advantages
from grace_exp.reward import RewardInputs, compose_reward

SYSTEM = (
    "Read and analyze the following text, then you need to provide your reasoning within <think></think> tags. "
    "Finally, generate a comprehensive understanding of this text."
)
TRIPLETS = [
    {"query": "How do plants eat?", "positive": "Leaves turn light into sugar.", "negative": "Cows eat grass."},
    {"query": "Why is the sea salty?", "positive": "Rivers wash salts off rocks.", "negative": "Fish live in the sea."},
    {"query": "What makes bread rise?", "positive": "Yeast gives off gas.", "negative": "Bread is sold by weight."},
    {"query": "Who wrote Hamlet?", "positive": "Shakespeare is its author.", "negative": "Hamlets are small villages."},
]
ROLLOUTS, MAX_TOKENS, TEMPERATURE, ANCHOR_TEMPERATURE = 4, 16, 1.0, 0.5
REWARD = RewardConfig(
    name="paper_supervised",
    temperature=0.1,
    terms=TermsConfig(
        positive=TermConfig(),
        negative=NegativeConfig(),
        consistency=TermConfig(weight=0.2),
        hard_negative=HardNegativeConfig(weight=0.2),
    ),
    truncation=TruncationConfig(mode="none"),  # with 16 tokens nearly all are cut; the paper has absolute
)
OBJECTIVE = ObjectiveConfig(mini_batch_size=2)  # two updates a step of four texts


Text = namedtuple("Text", ["prompt", "pool_start"])  # token ids; where pooling starts
Rationale = namedtuple("Rationale", ["text", "tokens", "temperature"])
Uniforms = Callable[[int, str, int, int, int], Tensor]
"""Maps (step, role, instance, number of the text, K) to uniform numbers in [0, 1), float64 [K, MAX_TOKENS]."""


def prompt_of(tokenizer, text: str) -> Text:
    """Put the chat template around a text; pooling starts after the system message."""
    system = [{"role": "system", "content": SYSTEM}]
    before = tokenizer.apply_chat_template(system, tokenize=False)
    chat = [*system, {"role": "user", "content": "\N{SYMBOL FOR NULL}"}]
    whole = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    head, tail = whole.removeprefix(before).split("\N{SYMBOL FOR NULL}")
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, head, tail)]
    user = tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return Text([*ids[0], *ids[1], *user, *ids[2]], len(ids[0]))


@torch.no_grad()
def write(model, ends: set[int], text: Text, uniforms: Tensor, temperature: float) -> list[Rationale]:
    """Write K rationales for one text, sampled from softmax(logits / temperature) over the whole vocabulary.

    `uniforms` has one number in [0, 1) for each token, float64 [K, longest rationale].
    """
    ids, cache = torch.tensor([text.prompt] * len(uniforms)), None
    written: list[list[int]] = [[] for _ in uniforms]
    for position in range(uniforms.shape[1]):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        ladder = (output.logits[:, -1] / temperature).softmax(dim=-1).double().cumsum(dim=-1)
        ids = torch.searchsorted(ladder, uniforms[:, position, None] * ladder[:, -1:], right=True)
        for tokens, token in zip(written, ids[:, 0].tolist(), strict=True):
            if not ends.intersection(tokens):
                tokens.append(token)
        if all(ends.intersection(tokens) for tokens in written):
            break
    return [Rationale(text, tokens, temperature) for tokens in written]


def forward(model, rationales: Sequence[Rationale]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings and log-probs from one forward.

    Returns:
        Embeddings, the mean hidden state over text and rationale, [n, hidden]; log-probs of the rationales' tokens,
        [n, longest]; and which positions are tokens, [n, longest] bool.
    """
    rows = [torch.tensor([*r.text.prompt, *r.tokens]) for r in rationales]
    ids = pad_sequence(rows, batch_first=True)
    real = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    output = model(input_ids=ids, attention_mask=real.long(), output_hidden_states=True)
    pooled = real & (torch.arange(ids.shape[1]) >= torch.tensor([r.text.pool_start for r in rationales])[:, None])
    weights = pooled.float() / pooled.sum(dim=1, keepdim=True)
    embeddings = torch.einsum("nt,nth->nh", weights, output.hidden_states[-1])
    logprobs = []
    for row, logits, rationale in zip(rows, output.logits, rationales, strict=True):
        start, end = len(rationale.text.prompt), len(row)
        distributions = (logits[start - 1 : end - 1] / rationale.temperature).log_softmax(dim=-1)
        logprobs.append(distributions.gather(1, row[start:, None])[:, 0])
    mask = pad_sequence([torch.ones(len(values), dtype=torch.bool) for values in logprobs], batch_first=True)
    return embeddings, pad_sequence(logprobs, batch_first=True), mask


def step(model, tokenizer, ends: set[int], optimizer, triplets, uniforms: Uniforms, number: int = 0) -> Tensor:
    """Make one GRACE step on a batch of triplets; return the rewards, [groups, K]."""
    model.eval()
    group, queries, negatives = [], [], []
    for index, row in enumerate(triplets):
        positive, query, negative = (prompt_of(tokenizer, row[role]) for role in ("positive", "query", "negative"))
        group += write(model, ends, positive, uniforms(number, "positive", index, 0, ROLLOUTS), TEMPERATURE)
        queries += write(model, ends, query, uniforms(number, "query", index, 0, 1), ANCHOR_TEMPERATURE)
        negatives += write(model, ends, negative, uniforms(number, "negative", index, 0, 1), ANCHOR_TEMPERATURE)

    groups = len(triplets)
    with torch.no_grad():
        embeddings, old_logprobs, _ = forward(model, group)
        anchors, others = forward(model, queries)[0], forward(model, negatives)[0]
    lengths = torch.tensor([len(r.tokens) for r in group]).view(groups, -1)
    truncated = torch.tensor([not ends.intersection(r.tokens) for r in group]).view(groups, -1)
    inputs = RewardInputs(
        rollouts_GKH=embeddings.view(groups, ROLLOUTS, -1),
        anchors_GAH=anchors[:, None],
        negatives_GMH=others[:, None],
        truncated_GK=truncated,
        lengths_GK=lengths,
    )
    reward = compose_reward(inputs, REWARD)
    judged = AdvantageInputs(
        rewards_GK=reward.final_GK, kept_GK=reward.kept_GK, lengths_GK=lengths, max_tokens=MAX_TOKENS
    )
    advantages = compute_advantages(judged, OBJECTIVE).flatten()

    model.train()
    for start in range(0, len(group), OBJECTIVE.mini_batch_size * ROLLOUTS):
        part = slice(start, start + OBJECTIVE.mini_batch_size * ROLLOUTS)
        _, logprobs, mask = forward(model, group[part])
        old = old_logprobs[part, : logprobs.shape[1]]
        losses = LossInputs(logprobs_NT=logprobs, old_logprobs_NT=old, advantages_N=advantages[part], mask_NT=mask)
        summed, _ = ALGORITHMS[OBJECTIVE.algorithm].loss(losses, OBJECTIVE)
        optimizer.zero_grad()
        (summed / mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return reward.final_GK


def seeded_uniforms(number: int, role: str, index: int, text: int, k: int) -> Tensor:
    """Return uniform numbers that depend only on the arguments, so that a second run writes the same rationales."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{number}/{role}/{index}/{text}".encode()))
    return torch.rand(k, MAX_TOKENS, dtype=torch.float64, generator=generator)


def load(name: str):
    """Return the model, the tokenizer, and the tokens that end a rationale."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name == "tiny":
        from grace_exp.policy.tiny import tiny_model, tiny_tokenizer

        model, tokenizer = tiny_model(0), tiny_tokenizer()
    else:
        if name == "smollm2":
            from grace_exp.policy.embedded import embedded_smollm2

            name = str(embedded_smollm2(Path("~/.cache/grace-exp").expanduser()))
        model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    configured = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    return model, tokenizer, ends


def main() -> None:
    """Train for some steps and print the mean reward of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, a folder, or a hub name")
    parser.add_argument("--data", type=Path, help="JSON lines with query, positive, negative")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="texts a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="the paper trains with 1e-6")
    arguments = parser.parse_args()
    model, tokenizer, ends = load(arguments.model)
    rows = [json.loads(line) for line in arguments.data.read_text().splitlines()] if arguments.data else TRIPLETS
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
    for number in range(arguments.steps):
        batch = [rows[(number * arguments.batch + place) % len(rows)] for place in range(arguments.batch)]
        rewards = step(model, tokenizer, ends, optimizer, batch, seeded_uniforms, number)
        print(f"step {number}: mean reward {rewards.mean():+.3f}")


if __name__ == "__main__":
    main()
