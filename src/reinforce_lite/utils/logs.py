"""What other packages log while they are imported."""

import logging


def quiet_dependencies() -> None:
    """Keep torchao's warnings about other machines off the screen; call it before torch is first imported.

    transformers imports torchao wherever it is installed, and torchao warns of every kernel that this machine
    cannot run.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
