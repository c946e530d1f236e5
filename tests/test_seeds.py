"""Named streams: each depends on seed and name alone, and no two are alike."""

from __future__ import annotations

import hashlib

import torch

from bdray.seeds import derive_seed, stream


def test_a_seed_is_the_digest_of_its_name() -> None:
    expected = int.from_bytes(hashlib.sha256(b"3/order/finetune/2").digest()[:8], "big") >> 1
    assert derive_seed(3, "order", "finetune", 2) == expected
    assert 0 <= expected < 2**63


def test_streams_differ_by_seed_name_and_index() -> None:
    seeds = [
        derive_seed(seed, name, *index)
        for seed in (0, 1, 10)
        for name in ("order", "augment", "noise")
        for index in ((), (1,), ("poison",), ("poison", 1))
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_stream_draws_the_same_again_and_touches_no_global_generator() -> None:
    before = torch.random.get_rng_state()
    first, second = (torch.rand(5, generator=stream(7, "init")) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(5, generator=stream(8, "init")))
    assert torch.equal(torch.random.get_rng_state(), before)
