import pytest
import torch

from bdray.regularizers import Mixing, mix, mixed_cross_entropy

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
PERMUTATION = torch.tensor([3, 0, 5, 1, 4, 2])


def test_mix_weighs_every_sample_against_its_partner() -> None:
    hidden = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 3, 3)
    mixed = mix(hidden, PERMUTATION, 0.75)
    for i, partner in enumerate(PERMUTATION.tolist()):
        assert torch.equal(mixed[i], torch.full((2, 3, 3), 0.75 * i + 0.25 * partner))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_mix_keeps_the_type_and_at_the_ends_takes_one_of_the_two(dtype: torch.dtype) -> None:
    hidden = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert mix(hidden, PERMUTATION, 0.3).dtype == dtype
    assert torch.equal(mix(hidden, PERMUTATION, 1.0), hidden)
    assert torch.equal(mix(hidden, PERMUTATION, 0.0), hidden[PERMUTATION])


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_mixed_cross_entropy_is_the_soft_cross_entropy_with_mixed_one_hot_labels(lam: float) -> None:
    one_hot = torch.nn.functional.one_hot(LABELS, 4).double()
    targets = mix(one_hot, PERMUTATION, lam)
    by_hand = -sum(
        targets[i, k] * (LOGITS[i, k] - LOGITS[i].exp().sum().log()) for i in range(6) for k in range(4)
    ) / len(LABELS)
    loss = mixed_cross_entropy(LOGITS, LABELS, Mixing("stage1", PERMUTATION, lam))
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(LOGITS, targets))


def test_without_mixing_it_is_plain_cross_entropy() -> None:
    expected = torch.nn.functional.cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(mixed_cross_entropy(LOGITS, LABELS, None), expected)


def test_half_precision_logits_are_computed_in_float32() -> None:
    assert mixed_cross_entropy(LOGITS.bfloat16(), LABELS, Mixing("input", PERMUTATION, 0.4)).dtype == torch.float32


@pytest.mark.parametrize("mixing", [None, Mixing("input", PERMUTATION, 0.3)])
def test_smoothed_labels_are_spread_over_all_classes(mixing: Mixing | None) -> None:
    smooth = 0.2
    labels = torch.nn.functional.one_hot(LABELS, 4).double()
    if mixing is not None:
        labels = mix(labels, PERMUTATION, 0.3)
    labels = (1 - smooth) * labels + smooth / 4
    expected = -(labels * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(mixed_cross_entropy(LOGITS, LABELS, mixing, label_smoothing=smooth), expected)
