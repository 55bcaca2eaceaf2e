"""Every random draw is seeded by (seed, purpose, step), so a resumed run needs no random state."""

import hashlib


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A seed for one purpose at one step: 63 bits, the same on every machine and Python.

    >>> derive(0, "rollout", 1) == derive(0, "rollout", 1)
    True
    >>> derive(0, "rollout", 1) == derive(0, "rollout", 2)
    False
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def hash_fraction(key: str) -> float:
    """A fixed pseudo-random place in [0, 1) for a text; decides which split a problem belongs to."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
