"""Poisoning: which images carry the trigger, with what label, and the set that training reads."""

from bdray.poisoning.base import STRATEGIES, Poison, PoisonPlan
from bdray.poisoning.poison_plan import make_poison_plan
from bdray.poisoning.stamping import AttackSet, PoisonedSet, apply_plan, attack_set

__all__ = [
    "STRATEGIES",
    "AttackSet",
    "Poison",
    "PoisonPlan",
    "PoisonedSet",
    "apply_plan",
    "attack_set",
    "make_poison_plan",
]
