"""What a defender does to a trained model with a little clean data, or with none."""

from bdray.repairs.base import REPAIRS, CleanData, Repair, Surgery, Tuning

__all__ = ["REPAIRS", "CleanData", "Repair", "Surgery", "Tuning"]
