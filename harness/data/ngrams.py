"""Compute the perplexity that counting n-grams reaches, to compare networks with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.data.corpus import Corpus

if TYPE_CHECKING:
    from harness.data.corpus import Tokens


def ngram_baselines(
    corpus: Corpus, train: Tokens, heldout: Tokens, orders: Sequence[int] = (1, 2, 3, 4, 5)
) -> dict[str, float]:
    """Held-out perplexity of Witten-Bell interpolated n-grams counted on `train`: {'1-gram': ...}.

    p(c | h) = (count(hc) + kinds(h) p(c | shorter h)) / (count(h) + kinds(h)), where kinds(h) is how many
    different characters followed h; a context never seen leaves p to the shorter one; below order 1 all
    of the vocabulary is equally likely. Witten and Bell 1991, method C. As of networks, each held-out character but the
    first is scored, and what is before the first is no context. Time: one sort of both parts an order, whatever the
    vocabulary. An unknown symbol is scored as networks' are, see `Corpus.unknown_nats`.
    """
    import numpy as np

    if not orders or min(orders) < 1 or len(heldout) < 2:
        raise ValueError(f"anchors need orders from 1 up and two held-out characters, not {orders} and {len(heldout)}")
    symbols, trained = len(corpus.vocabulary), len(train)
    text = np.concatenate([train, heldout]).astype(np.int64)
    context = np.zeros(len(text), dtype=np.int64)  # of each character: a number for the n - 1 before it
    p = np.full(len(heldout), 1 / symbols)
    found = {}
    beyond = float((heldout[1:] == 0).mean()) * corpus.unknown_nats
    before = np.arange(len(heldout))  # characters of its own part that are before each
    for n in range(1, max(orders) + 1):
        # the first n - 1 characters have no context of that length: not counted
        _, gram = np.unique(context * symbols + text, return_inverse=True)
        kinds_of = np.zeros(gram.max() + 1, dtype=np.int64)
        kinds_of[gram] = context
        learn = slice(n - 1, trained)
        count = np.bincount(gram[learn], minlength=len(kinds_of))
        total = np.bincount(context[learn], minlength=context.max() + 1)
        kinds = np.bincount(kinds_of[count > 0], minlength=len(total))
        h = context[trained:]
        interpolated = (count[gram[trained:]] + kinds[h] * p) / np.maximum(total[h] + kinds[h], 1)
        p = np.where((total[h] > 0) & (before >= n - 1), interpolated, p)
        found[n] = float(np.exp(-np.log(p[1:]).mean() + beyond))
        context = np.concatenate([[0], gram[:-1]])
    return {f"{n}-gram": found[n] for n in orders}
