"""Declare what a reviewer asks of an ablation, each question as trainings beside the default ones: data, nothing runs.

Rule: the list stands before the first training. Each question changes one thing; from the second on learning rates are
chosen, for each variant, by seeds that are not scored. Verdicts as in every table: the exact sign-flip test, and Holm
over the differences of one question, which is a family.
"""

from __future__ import annotations

from dataclasses import dataclass

PROTOCOL = "quick"
VARIANTS = ("gru", "gru:R=1", "gru:Z=0", "gru:Z=0,R=1")
TUNED = ("validation_characters=8000", "rate=chosen")


@dataclass(frozen=True)
class Question:
    """`settings` of PROTOCOL, another text, and whether each training counts where its validation loss was lowest."""

    name: str
    asks: str
    settings: tuple[str, ...] = TUNED
    corpus: str = "time-machine"
    early: bool = False


QUESTIONS = (
    Question("as_it_is", "As it is: one rate for all", ()),
    Question("tuned", "With the learning rate chosen for each variant?"),
    Question("another_text", "On another text, Python's documentation?", corpus="python-docs"),
    Question("two_layers", "With two layers?", (*TUNED, "layers=2")),
    Question("longer", "Trained four times as long?", (*TUNED, "epochs=20")),
    Question("early_stopping", "Trained so long, but stopped where the validation part was best?",
             (*TUNED, "epochs=20"), early=True),
    Question("adam", "With Adam?", (*TUNED, "optimizer=adam")),
    Question("equal_parameters", "At equal parameters?", (*TUNED, "match=parameters")),
    Question("generated_text", "On a generated text whose entropy is known?", corpus="embedded"),
)  # fmt: skip
