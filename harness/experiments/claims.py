"""Declare what others have published: claims of the literature, each with its test fixed before it is run, and the
book's perplexities. Data, no code that trains.

One rule: a claim is one entry of CLAIMS. Its source and how much of it was read, the sentence in our words, and the
comparisons that it predicts. A comparison names what is trained (an `Arm`), the kind of outcome predicted, and a
margin. The budget is that of the protocols: on tasks 2,000 updates by Adam at 32 hidden units, the learning rate chosen
by seeds that are not scored; on text the protocol `quick`, its rate chosen on a validation part of 8,000 characters.
A claim is reproduced where all of its comparisons are, contradicted where one of them is, else undecided. What a claim
was made of is mostly larger: a verdict is of these tasks, sizes and budgets.

Kinds, v the variant and o the other; shares have exact 95 % intervals, all else t intervals paired by seed:

    solves     more than half of the seeds of v solve the task: the interval of the share is above 1/2
    fails      fewer than half do within the budget
    better     v solves the task with more seeds than o (their intervals are apart); or most seeds of both do and v
               needs at least 10 % fewer updates
    generalizes  the mean score of v at the longer length is at least `margin`
    worse      the interval of v's held-out loss less o's is above 0, and not wholly below `margin` nats a character
    not_worse  v's loss is above o's by less than `margin`
    same       v's loss is within `margin` of o's

One rule was changed after the first whole run had been read: a task that was not solved within the budget had
contradicted "solves". That 2,000 updates do not solve it does not show that more would not: it is undecided. No margin,
budget or grid changed. The tasks were chosen in an exploratory study, with other seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

MARGIN = 0.02  # nats a character: inside it two losses count as the same, as in every other verdict
SOONER = 0.9  # of the other's updates, at most, is sooner
TEXT = ("train_characters=80000", "validation_characters=8000", "rate=chosen")  # of `quick`
EQUAL = "match=parameters"  # hidden size by parameters, those of the GRU


@dataclass(frozen=True)
class Arm:
    """A training that a claim compares: a variant on a text or task, at the task's own length, with fields of the
    protocol changed.
    """

    variant: str
    task: str = "text"
    settings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return " ".join((self.variant, *self.settings))


@dataclass(frozen=True)
class Comparison:
    """One outcome that is predicted of `arm`, beside `other` where the kind compares two."""

    kind: str
    arm: Arm
    other: Arm | None = None
    margin: float = MARGIN

    @property
    def arms(self) -> tuple[Arm, ...]:
        return (self.arm, self.other) if self.other else (self.arm,)

    @property
    def prediction(self) -> str:
        """In words."""
        arm, task = self.arm.label, self.arm.task.replace("_", " ")
        other = self.other.label if self.other else ""
        return {
            "solves": f"{arm} solves {task}",
            "fails": f"{arm} does not solve {task} within the budget",
            "better": f"{arm} solves {task} with more seeds, or sooner, than {other}",
            "generalizes": f"{arm} scores {self.margin:g} or more on {task} beyond the trained length",
            "worse": f"{arm} predicts the text worse than {other}",
            "not_worse": f"{arm} predicts the text at most {self.margin:g} nats worse than {other}",
            "same": f"{arm} and {other} predict the text alike, within {self.margin:g} nats",
        }[self.kind]


@dataclass(frozen=True)
class Claim:
    """`read`: what of the source the prediction was written from."""

    name: str
    source: str
    url: str
    read: str
    sentence: str
    comparisons: tuple[Comparison, ...] = field(default=())


def _solves(variant: str, task: str, *settings: str) -> Comparison:
    return Comparison("solves", Arm(variant, task, settings))


def _fails(variant: str, task: str, *settings: str) -> Comparison:
    return Comparison("fails", Arm(variant, task, settings))


def _better(variant: str, other: str, task: str, *settings: str) -> Comparison:
    return Comparison("better", Arm(variant, task, settings), Arm(other, task, settings))


def _text(kind: str, variant: str, other: str, margin: float = MARGIN) -> Comparison:
    return Comparison(kind, Arm(variant), Arm(other), margin)


D2L = ("Zhang et al., Dive into Deep Learning, on the GRU", "https://d2l.ai/chapter_recurrent-modern/gru.html",
       "a summary of the chapter")  # fmt: skip
ABSTRACT = "quoted from the abstract"  # the paper's tables could not be had
DEY = ("Dey and Salem 2017", "https://arxiv.org/abs/1701.05923")
GREFF = ("Greff et al. 2015", "https://arxiv.org/abs/1503.04069")

CLAIMS = (
    Claim("contains_rnn", *D2L, "A GRU whose reset gate is on and whose update gate is off is a plain RNN.",
          (_text("same", "gru:Z=0,R=1", "rnn", 1e-6),)),
    Claim("reset_short", *D2L, "Reset gates help to capture short-term dependencies.",
          (_better("gru", "gru:R=1", "table3"), _better("gru:Z=0", "gru:R=1", "table3"))),
    Claim("reset_short_equal_size", *D2L, "The same at equal parameters.",
          (_better("gru", "gru:R=1", "table3", EQUAL),)),
    Claim("update_long", *D2L, "Update gates help to capture long-term dependencies.",
          (_better("gru", "gru:Z=0", "delayed_recall"), _better("gru:R=1", "gru:Z=0", "delayed_recall"))),
    Claim("gru1_gru2", *DEY, ABSTRACT, "Gates that see the state alone (GRU2), or with a bias (GRU1), do as well.",
          (_text("same", "gru1", "gru"), _text("same", "gru2", "gru"))),
    Claim("gru3_lags", *DEY, "abstract, and a summary of the paper",
          "Gates that are a bias alone (GRU3) lag behind the GRU on long sequences.",
          (_better("gru", "gru3", "delayed_recall"),)),
    Claim("one_gate", "Zhou et al. 2016", "https://arxiv.org/abs/1603.09420", ABSTRACT,
          "A unit with one gate (MGU) is comparable with the GRU.", (_text("same", "mgu", "gru"),)),
    Claim("reset_redundant", "Ravanelli et al. 2018", "https://arxiv.org/abs/1803.10225", ABSTRACT,
          "The reset gate is largely redundant with the update gate: without it nothing is lost.",
          (_text("not_worse", "gru:R=1", "gru"),)),
    Claim("forget_gate_alone", "van der Westhuizen and Lasenby 2018", "https://arxiv.org/abs/1804.04849", ABSTRACT,
          "An LSTM with its forget gate alone (JANET) is as good as the LSTM, also on long memory.",
          (_text("not_worse", "janet", "lstm"), _solves("janet", "delayed_recall"))),
    Claim("forget_gate_critical", *GREFF, ABSTRACT, "The forget gate is one of the two critical parts of the LSTM.",
          (_text("worse", "lstm:F=1", "lstm"),)),
    Claim("coupling_is_free", *GREFF, ABSTRACT, "Coupling the input gate to the forget gate costs nothing.",
          (_text("not_worse", "cifg", "lstm"),)),
    Claim("one_layer_permutations", "Merrill, Petty and Sabharwal 2024", "https://arxiv.org/abs/2404.08819", ABSTRACT,
          "One recurrent layer can learn to compose permutations.",
          (_solves("rnn", "s3"), _solves("gru", "s3"), _solves("gru", "a5"))),
    Claim("positive_gates_no_parity", "Grazzi et al. 2024", "https://arxiv.org/abs/2411.12537", ABSTRACT,
          "A linear recurrence with values from 0 to 1 cannot do parity; from -1 to 1, or a non-linear one, can.",
          (_fails("min_gru", "parity"), _solves("min_gru_signed", "parity"), _solves("gru", "parity"))),
    Claim("diagonal_no_mod", "Grazzi et al. 2024", "https://arxiv.org/abs/2411.12537", ABSTRACT,
          "A diagonal linear recurrence, signed or not, cannot count modulo more than 2 (here 5).",
          (_fails("min_gru_signed", "sum_mod"), _solves("gru", "sum_mod"))),
    Claim("minimal_is_enough", "Feng et al. 2024", "https://arxiv.org/abs/2410.01201", ABSTRACT,
          "Gates and candidate that see the input alone (minGRU) are competitive with the GRU.",
          (_text("not_worse", "min_gru", "gru"),)),
    Claim("lstm_counts", "Weiss, Goldberg and Yahav 2018", "https://arxiv.org/abs/1805.04908", ABSTRACT,
          "The LSTM learns to count beyond the trained length; the GRU, whose state is bounded, does not.",
          (_better("lstm", "gru", "counting"), _fails("gru", "counting"))),
    Claim("chrono", "Tallec and Ollivier 2018", "https://arxiv.org/abs/1804.11188", ABSTRACT,
          "Initial gate biases spread over the range of the dependencies (chrono) help with long-term dependencies.",
          tuple(Comparison("better", Arm("gru", task, ("update_bias=chrono",)), Arm("gru", task))
                for task in ("delayed_recall", "adding"))),
    Claim("trainability", "Collins, Sohl-Dickstein and Sussillo 2016", "https://arxiv.org/abs/1611.09913", ABSTRACT,
          "With the same parameters a plain RNN is far more difficult to train than a gated one.",
          (_better("gru", "rnn", "s3", EQUAL), _better("ugrnn", "rnn", "s3", EQUAL))),
    Claim("mixing_generalizes", "Bouhadjar et al. 2026", "https://arxiv.org/abs/2601.12598", ABSTRACT,
          "Units that mix are needed to generalise; without them a gated network follows a state less well.",
          (_better("gru", "gru_diag", "s3"),)),
)  # fmt: skip


def arms() -> list[Arm]:
    """Every arm of every claim, once."""
    return list(dict.fromkeys(arm for claim in CLAIMS for comparison in claim.comparisons for arm in comparison.arms))


class Figure(NamedTuple):
    """A perplexity that the book publishes: mean and standard deviation over its `builds` (fewest, most).

    Source: the outputs of the notebooks in the builds of d2l.ai's PyTorch edition; no seed was set in any of them.
    `classic`: training perplexity of the last epoch. `v1`, the later edition: held-out perplexity of the last epoch,
    the mean over minibatches of exp(loss).
    """

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
