"""Packed cache rows: bytes as the simulator prices them, kernels against the reference, codes against their bits."""

import pytest
import torch

from runtime.kernels import packed_rows as kernels
from runtime.kernels.store_rows import store_rows
from runtime.reference import packed_rows as reference
from runtime.reference.packed_rows import Packing, index_key, latent, shared_kv
from simulator.model.families.kv_layout import index_key_bytes, mla_entry_bytes, shared_kv_entry_bytes

SMALL = [shared_kv(72, 8), shared_kv(32, 8), latent(160, 8), latent(32, 8), index_key(64), index_key(16)]


def test_rows_take_the_bytes_that_the_simulator_prices() -> None:
    assert shared_kv(512, 64).num_bytes == shared_kv_entry_bytes(512, 64, "fp8")
    assert latent(512, 64).num_bytes == mla_entry_bytes(512, 64, "fp8")
    assert index_key(128).num_bytes == index_key_bytes(128, "fp4")


@pytest.mark.parametrize("packing", SMALL, ids=str)
def test_kernels_pack_the_bytes_of_the_reference(packing: Packing, device: torch.device) -> None:
    values = torch.randn(5, packing.dim, device=device) * torch.tensor([[1e-3], [1.0], [0.0], [300.0], [7.0]]).to(
        device
    )
    values[1, :4] = torch.tensor([0.25, -0.75, 1.25, -6.0])
    rows = torch.tensor([3, -1, 0, 5, 6], dtype=torch.int32, device=device)
    ours = torch.zeros(7, packing.num_bytes, dtype=torch.uint8, device=device)
    store_rows(values, ours, rows, packing)
    expected = torch.zeros_like(ours)
    expected[[3, 0, 5, 6]] = reference.pack(values[[0, 2, 3, 4]], packing)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("packing", [p for p in SMALL if not p.fp4], ids=str)
def test_kernels_read_what_they_packed(packing: Packing, device: torch.device) -> None:
    values = torch.randn(6, packing.dim, device=device)
    assert torch.equal(kernels.round_rows(values, packing), reference.round_rows(values, packing))


@pytest.mark.parametrize("packing", SMALL, ids=str)
def test_reading_errs_by_half_a_step(packing: Packing) -> None:
    """e4m3 has 3 bits of mantissa, e2m1 has 1: half a unit in the last place of the largest of a group."""
    values = torch.randn(40, packing.dim, generator=torch.Generator().manual_seed(1))
    error = (reference.unpack(reference.pack(values, packing), packing) - values).abs()
    coded = error[:, : packing.coded]
    largest = values[:, : packing.coded].abs().amax(1, keepdim=True)
    assert (coded <= largest * (2**-2 if packing.fp4 else 2**-4)).all()
    assert (error[:, packing.coded :] <= values[:, packing.coded :].abs() * 2**-8).all()


def test_rounded_keys_stay_as_they_are() -> None:
    """A chunk reads rounded keys and stores them: later steps must read the same."""
    packing = shared_kv(72, 8)
    once = reference.round_rows(torch.randn(64, 72, generator=torch.Generator().manual_seed(5)), packing)
    assert torch.equal(reference.round_rows(once, packing), once)
