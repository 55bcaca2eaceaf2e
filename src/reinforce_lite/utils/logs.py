"""Log levels of other packages."""

import logging


def quiet_dependencies() -> None:
    """Hide torchao's warnings about kernels for other machines; call it before torch is first imported.

    transformers imports torchao wherever it is installed, and torchao warns of every kernel that this machine
    can't run.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
