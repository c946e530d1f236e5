"""What a defender does to a trained model with a little clean data, or with none."""

from bdray.repairs.base import REPAIRS, CleanData, Operation, Repair, Training

__all__ = ["REPAIRS", "CleanData", "Operation", "Repair", "Training"]
