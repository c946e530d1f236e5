"""Poisoning: which images carry the trigger, with what label, and the set that training reads."""

from bdray.poisoning.base import STRATEGIES, Poison, PoisonPlan
from bdray.poisoning.plan import make_poison_plan

__all__ = ["STRATEGIES", "Poison", "PoisonPlan", "make_poison_plan"]
