"""Data sets as memory-mapped uint8 arrays, one data set a file."""

from bdray.data.arrays import ImageData
from bdray.data.base import DATASETS, DataSet, build_dataset

__all__ = ["DATASETS", "DataSet", "ImageData", "build_dataset"]
