"""How a variant is executed, one engine a file.

Each file has

    refuses(variant) -> str         why it cannot run that cell, '' when it can
    unroll(cell, X, state)          X (T, S, n, d) one-hot, state -> outputs (T, S, n, h), state
"""
