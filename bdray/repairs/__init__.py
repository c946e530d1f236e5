"""What a defender does to a trained model with a little clean data, or with none."""

from bdray.repairs.base import REPAIRS, Among, Operation, Repair, Training
from bdray.repairs.objective import Batch, Objective
from bdray.repairs.tools import CleanData, Tools

__all__ = ["REPAIRS", "Among", "Batch", "CleanData", "Objective", "Operation", "Repair", "Tools", "Training"]
