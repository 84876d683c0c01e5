"""Count how much a policy has computed, as the basis of model FLOPs."""

from dataclasses import dataclass


@dataclass(slots=True)
class WorkCounter:
    """Sums over forwards.

    Attributes:
        tokens: Number of tokens read, without padding.
        pairs: Number of pairs of a token and one it attends to; for a plain row half of the square of its length.
        targets: Positions whose logits were computed.
    """

    tokens: int = 0
    pairs: float = 0.0
    targets: int = 0

    def add(self, tokens: int = 0, pairs: float = 0.0, targets: int = 0) -> None:
        """Add a forward, or a part of it."""
        self.tokens += tokens
        self.pairs += pairs
        self.targets += targets

    def taken(self) -> "WorkCounter":
        """Return the sums so far and reset them to 0."""
        sums = WorkCounter(self.tokens, self.pairs, self.targets)
        self.tokens, self.pairs, self.targets = 0, 0.0, 0
        return sums
