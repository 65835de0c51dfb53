"""Record the perplexities of the book's own notebooks and the settings they were had with.

Source: the outputs of the notebooks in the builds of d2l.ai's PyTorch edition, counted over builds; no seed was set in
any of them. `classic`: training perplexity of the last epoch. `v1`, the later edition: held-out perplexity of the last
epoch, the mean over minibatches of exp(loss).
"""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """A published perplexity: mean and standard deviation over `builds` (fewest, most) of the book."""

    mean: float
    sd: float
    builds: tuple[int, int]


Setting = tuple[str, tuple[str, ...]]  # a protocol's name, and what is set in it
_OLD, _NEW = (87, 101), (11, 11)
PUBLISHED: dict[tuple[Setting, str], Figure] = {
    (("classic", ("hidden=512",)), "rnn"): Figure(1.02, 0.05, _OLD),
    (("classic", ()), "nn.rnn"): Figure(1.31, 0.03, _OLD),
    (("classic", ()), "gru"): Figure(1.11, 0.06, _OLD),
    (("classic", ()), "nn.gru"): Figure(1.02, 0.05, _OLD),
    (("classic", ()), "lstm"): Figure(1.16, 0.09, _OLD),
    (("classic", ()), "nn.lstm"): Figure(1.05, 0.06, _OLD),
    (("v1", ("lr=1", "epochs=100")), "rnn"): Figure(7.32, 0.10, _NEW),
    (("v1", ("lr=1", "epochs=100")), "nn.rnn"): Figure(7.27, 0.09, _NEW),
    (("v1", ()), "gru"): Figure(6.83, 0.09, _NEW),
    (("v1", ()), "nn.gru"): Figure(6.61, 0.13, _NEW),
    (("v1", ()), "lstm"): Figure(7.46, 0.11, _NEW),
    (("v1", ()), "nn.lstm"): Figure(6.86, 0.10, _NEW),
}
SETTINGS: dict[Setting, list[str]] = {}
for (_setting, _variant), _ in PUBLISHED.items():
    SETTINGS.setdefault(_setting, []).append(_variant)
