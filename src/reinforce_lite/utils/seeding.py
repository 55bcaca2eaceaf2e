"""Every random draw is seeded by (seed, purpose, step), so a resumed run needs no saved random state."""

import hashlib


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A seed for one purpose at one step: 63 bits, the same on every machine and Python version.

    >>> derive_seed(0, "rollout", 1)
    6929956040392660302
    >>> derive_seed(0, "rollout", 2)
    1482415719379592808
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def hash_fraction(key: str) -> float:
    """A pseudo-random number in [0, 1) that depends on the text alone; assigns problems to splits.

    >>> hash_fraction("train-0")
    0.2625178867758451
    """
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
