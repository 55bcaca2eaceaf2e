"""What the machine is, and the tests on its card."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from card.shared import CUDA, DEVICE, TINY, product_tflops, report, seconds

from reinforce_lite.utils.environment import package_versions


def smoke() -> None:
    """What the machine is, and what it reaches: products, copies, launches, waits."""
    report(
        torch=torch.__version__,
        transformers=transformers.__version__,
        versions=package_versions(),
        cores=os.cpu_count(),
        gpu=torch.cuda.get_device_name() if CUDA else None,
        total_bytes=torch.cuda.get_device_properties(0).total_memory if CUDA else None,
    )
    source = torch.randn(2**20 if TINY else 2**30, dtype=torch.bfloat16, device=DEVICE)
    target = torch.empty_like(source)
    small = torch.randn(64, device=DEVICE)

    def thousand_launches() -> None:
        for _ in range(1000):
            small.add_(1.0)

    report(
        product_tflops=product_tflops(),
        copy_gb_s=4 * len(source) / seconds(lambda: target.copy_(source)) / 1e9,
        microseconds_per_launch=1e3 * seconds(thousand_launches),
        microseconds_per_wait=1e6 * seconds(lambda: small[0].item()),
    )


ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/models/test_forward.py",
    "tests/models/test_attention.py",
    "tests/engines/test_native.py",
    "tests/learner/test_updater.py",
)


def tests(*paths: str) -> None:
    """pytest, with the tensors of these files on the GPU."""
    environment = os.environ | {"REINFORCE_LITE_TEST_DEVICE": DEVICE.type}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(paths or TESTS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-20_000:], done.stderr[-2000:])
    lines = done.stdout.splitlines()
    failed = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    report(status=done.returncode, last=lines[-1:], failed=failed)
