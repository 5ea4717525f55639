"""Kernel tests run on the GPU where there is one, else on the CPU through the corrected interpreter."""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _interpret_kernels(device: torch.device) -> Iterator[None]:
    """Entered for one test at a time, so that no other test module meets a patched Triton."""
    torch.manual_seed(20261123)
    if device.type == "cuda":
        yield
        return
    from runtime.interpreter import interpreted

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with interpreted():
        yield
    torch.set_num_threads(threads)
