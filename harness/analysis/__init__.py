"""Analyse: frames in, frames out. No disk, no clock, no torch."""
