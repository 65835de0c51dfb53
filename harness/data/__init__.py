"""Get texts, prepare them, and compute what counting their characters achieves."""
