"""Texts: where they come from, how they are prepared, what counting their characters achieves."""
