"""Does the policy write the same to many texts?"""

import hashlib
from collections import Counter
from collections.abc import Sequence

from torch import Tensor


def rationale_key(token_ids: Sequence[int]) -> int:
    """A rationale by a number of 63 bits that is the same on all processes."""
    digest = hashlib.blake2b(",".join(map(str, token_ids)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def most_common_share(keys: Tensor) -> float:
    """Share of the instances that have the rationale which most instances have.

    Args:
        keys: The rationales of each instance by `rationale_key`, [instances, rationales].

    Returns:
        1 where one rationale was written to every text, 1 / instances where no two texts share one.
    """
    counts = Counter(key for row in keys.tolist() for key in set(row))
    return max(counts.values()) / len(keys)
