"""bdray: sweeps that measure backdoor data poisoning of image classifiers."""

__version__ = "0.1.0"
