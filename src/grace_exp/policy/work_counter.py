"""How much a policy has computed: what model FLOPs follow from."""

from dataclasses import dataclass


@dataclass(slots=True)
class WorkCounter:
    """Sums over forwards.

    Attributes:
        tokens: Read, without padding.
        pairs: Of a token and one that it attends to, half of the square of a plain row's length.
        targets: Positions whose logits were computed.
    """

    tokens: int = 0
    pairs: float = 0.0
    targets: int = 0

    def add(self, tokens: int = 0, pairs: float = 0.0, targets: int = 0) -> None:
        """Count a forward, or a part of it."""
        self.tokens += tokens
        self.pairs += pairs
        self.targets += targets

    def taken(self) -> "WorkCounter":
        """The sums so far; counting starts again at 0."""
        sums = WorkCounter(self.tokens, self.pairs, self.targets)
        self.tokens, self.pairs, self.targets = 0, 0.0, 0
        return sums
