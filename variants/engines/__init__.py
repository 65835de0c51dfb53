"""How a variant is executed, one engine a file.

Each file has

    refuses(variant, device) -> str     why it cannot run that cell there, '' when it can
    unroll(cell, X, state)              characters X (T, S, n) as indices, state -> outputs (T, S, n, h), state
"""
