"""Execute a variant: one engine a file.

Each file has

    unsupported_reason(variant, device) -> str     why it cannot run that cell there, '' when it can
    unroll(cell, X, state)              characters X (T, S, n) as indices, state -> outputs (T, S, n, h), state

and may have

    unsupported_size(hidden, batch, precision)      why a size does not fit, '' where it does
    Trainer(model)                      whole training steps without autograd: `serves(X)`, `step`, as `Model.learn`

derive.py makes of a cell's `step` what an engine runs; emit.py writes that as C.
"""
