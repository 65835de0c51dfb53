"""Measure recurrent networks: train them, time them, compare them, and show the evidence."""

__version__ = "0.1.0"
