"""Compare an engine with the reference engine: no time and no perplexity of one that disagrees counts."""

from __future__ import annotations

from harness.experiments.runs import Run

AGREE = 1e-10  # the most an engine may differ from the loop, in float64, before it counts
# The most an engine for float32 alone may, of the norm: what rounding every product to 11 or 8 bits gives, and some.
ROUNDED = {"ieee": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
FLOAT32 = ("resident",)  # engines that know no float64
UNFIT = ("disagrees", "cannot run")  # how an error begins for which another engine trains instead


def max_abs_error(run: Run, vocabulary: int) -> float:
    """Return the largest difference from the reference engine in float64, over one sequence and one training step.

    Of the losses, the last state, every gradient, and all that a training step leaves. At the size that is to be
    timed, from a state that is not zero, every weight random. 0 for the plainest itself. Of an engine that knows no
    float64, the norm of the difference over that of the plainest's, the largest.
    """
    import torch

    import variants
    from variants import optimizer
    from variants.model import Model

    plain = variants.reference_engine(run.variant)
    if run.engine == plain:
        return 0.0
    size, device = run.setting, run.device
    found = []
    for engine in (plain, run.engine):
        rng = torch.Generator().manual_seed(0)
        dtype = torch.float32 if engine in FLOAT32 else torch.float64
        model = Model(
            run.variant, vocabulary, size.hidden, [0], "torch", dtype=dtype, device=device, engine=engine,
            layers=size.layers, dropout=size.dropout, embedding=size.embedding,
        )  # fmt: skip
        X = torch.randint(vocabulary, (size.num_steps + 1, 1, size.batch_size), generator=rng).to(device)
        state = tuple(
            torch.randn(s.shape, generator=rng, dtype=torch.float64).to(device, dtype)
            for s in model.cell.begin(size.batch_size)
        )
        losses, after = model.losses(X[:-1], X[1:], state)
        ends = [value for value in (losses, *after) if value.requires_grad]  # gru:Z=1 never changes its state
        torch.autograd.backward(ends, [torch.ones_like(value) for value in ends])
        results = [losses, *after, *(torch.zeros_like(w) if w.grad is None else w.grad for w in model.parameters())]
        results = [value.detach() for value in results]
        model.gather()
        # whole steps may be another code; Adam's step is as large where a gradient is but rounding
        lr = 1.0 if size.optimizer == "sgd" else 1e-4
        losses, norms, after = model.learn(X[:-1], X[1:], state, lr, 1.0, optimizer.of(size, 2))
        found.append([*results, *(value.detach() for value in (losses, norms, *after, *model.parameters()))])
    pairs = [(a, b) for a, b in zip(*found, strict=True) if a.numel()]
    if run.engine in FLOAT32:
        apart = [(a - b).norm() / a.norm().clamp(min=1e-30) for a, b in pairs]
    else:
        apart = [(a - b).abs().max() for a, b in pairs]
    return float(torch.stack([one.double() for one in apart]).max())  # NaN is the largest, which Python's max passes by


def check_agreement(run: Run, apart: float) -> str:
    """'' where so large a difference is within what this engine may round, else why nothing it gives counts."""
    most = ROUNDED[run.precision] if run.engine in FLOAT32 else AGREE
    if apart <= most:
        return ""
    return f"disagrees: {run.engine} differs from the reference engine by {apart:.2g}, over {most:g}"
