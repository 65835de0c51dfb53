"""OPTIONS: every option of every verb, declared once: for the command line, and for `harness.bench` and the like.

Rule: bad input is a ValueError of one line: the thing, the choices and the next step.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from harness.experiments import grids, protocols
from harness.plan import ON, PRECISIONS, task_names
from variants import registry

VERBS = {
    "bench": "train and time the cells written here and torch's: bench.csv and the report",
    "ablate": "train and time the GRU with its gates fixed, on text and four tasks: ablate.csv, tasks.csv, the report",
    "sweep": "time every engine by hidden size and number of seeds: speed.csv and the report; --full for all of it",
    "reproduce": "train the models whose perplexities the book publishes, on its two protocols: reproduce.csv",
    "probe": "train on tasks that ask what a gate is for, until they are solved: tasks.csv, probes.csv",
    "exercises": "answer the four exercises of the book's chapter: gates, sizes, RNN and GRU, parts of a GRU",
    "claims": "train what nineteen claims of the literature are about, and give each a verdict: claims.csv",
    "report": "build the tables and the report again from what is on file, training nothing",
    "pack": "put the files of runs and samples into one, raw.tar.xz, which every verb reads; --undo puts them back",
    "compare": "compare A B, two results folders or REVISION:FOLDER: what differs, and whether B is worse by --limit",
    "gate": "bench, then compare with the folder --base, for a CI: status 0 not worse, 1 worse, 3 too noisy to tell",
    "merge": "merge A B ...: take the trainings of results folders A, B, ... over into --results, and make its report",
    "new": "new cell NAME: write NAME.py, a cell to begin with, and test_NAME.py, its scalar twin, here",
    "list": "what there is, what would run, its keys, and which runs are done",
}


TEXT_HELP = (
    "time-machine, which is the default and part of the package, or the path of a UTF-8 file. Of a file each run of "
    "white space, line ends too, becomes one space; case and punctuation stay. --set text=raw: the file as it is, "
    "lines and all; text=lines: letters alone, in lower case, line by line, as the book's chapter has it; text=whole: "
    "the same of the whole text, as its later edition. Every symbol is kept, unless --set max_vocabulary=N"
)


_TRAINS = {"device", "engine", "precision", "deterministic", "settings", "results"}
_AWAY = {"on", "mixed", "shard"}  # what trains elsewhere; nothing is timed there


TAKES = {  # the options of each verb: any other is refused, not ignored
    "bench": _TRAINS | _AWAY | {"protocol", "corpus", "variants", "seeds", "max", "no_timing"},
    "ablate": _TRAINS | _AWAY | {"protocol", "corpus", "variants", "seeds", "max", "no_timing", "no_tasks"},
    "sweep": _TRAINS | {"protocol", "corpus", "variants", "full"},
    "reproduce": _TRAINS | _AWAY | {"protocol", "corpus", "seeds"},
    "probe": _TRAINS | _AWAY | {"variants", "seeds", "tasks", "lengths"},
    "exercises": _AWAY | {"device", "engine", "seeds", "results", "no_timing"},
    "claims": _AWAY | {"device", "engine", "seeds", "results"},
    "report": {"results"},
    "compare": {"limit", "to"},
    "gate": _TRAINS | {"protocol", "corpus", "variants", "seeds", "no_timing", "base", "limit", "to"},
    "pack": {"results", "undo"},
    "merge": {"results"},
    "new": set(),
    "list": _TRAINS | {"protocol", "corpus", "variants", "seeds", "max"},
}


FLAGS = ("deterministic", "no_timing", "no_tasks", "full", "undo", "json", "mixed")
WORDS = ("new", "compare", "merge")  # verbs that take words of their own, before any option


def strange(kind: str, word: str, names: Sequence[str]) -> str:
    """One line for a word like `seeds=3`, `--epochs` or `rnn` that is no option, nor NAME= or target of make."""
    name, _, value = word.partition("=")
    field = registry.ascii_of(name).lstrip("-").lower().replace("-", "_")
    shape = "--{} {}" if kind == "option" else '{}="{}"'
    if field in protocols.FIELDS and not {f"--{field}", field.upper()} & set(names):
        meant = shape.format("set" if kind == "option" else "SET", f"{field}={value or 'VALUE'}")
        return f"no {kind} {name!r}: {field} is a field of the protocol, {meant}"
    if name.partition(":")[0] in registry.catalog():
        meant = shape.format("variants" if kind == "option" else "VARIANTS", f"{grids.BASELINE} {word}")
        return f"no {kind} {word!r}: variants are one list, like {meant}"
    return registry.unknown(kind, name, names)


class Once(argparse.Action):
    """An option's value, which is given once: the last of two would hide the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, options: argparse.Namespace, value: object, flag: str | None = None
    ) -> None:
        given = vars(options).setdefault("given", {})
        if self.dest in given:
            parser.error(f"{flag} is given twice")
        given[self.dest] = flag
        setattr(options, self.dest, value)


class Parser(argparse.ArgumentParser):
    """argparse, its errors in one line."""

    def error(self, message: str) -> NoReturn:
        _, unknown, words = message.partition("unrecognized arguments: ")
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            raise ValueError(strange("option", words.split()[0], flags))
        raise ValueError(f"{message} (see --help)")

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The options of one verb. ValueError, in one line, for what it does not take."""
        words = sys.argv[1:] if arguments is None else list(arguments)
        end = next((k for k, word in enumerate(words) if word.startswith("-")), len(words)) if words[:1] else 0
        own = words[1:end] if words and words[0] in WORDS else []
        options = self.parse_args([*words[:1], *words[1 + len(own) :]])
        options.words = own
        if options.verb not in VERBS:
            raise ValueError(registry.unknown("verb", options.verb, VERBS))
        given = {dest: flag for dest, flag in vars(options).get("given", {}).items() if flag}
        given |= {"settings": "--set"} if options.settings else {}
        given |= {dest: f"--{dest.replace('_', '-')}" for dest in FLAGS if getattr(options, dest)}
        for dest, flag in given.items():
            if dest not in TAKES[options.verb] | {"json"}:
                takes = ", ".join(verb for verb, own in TAKES.items() if dest in own)
                raise ValueError(f"{options.verb} takes no {flag}: it is an option of {takes}")
        if options.shard and "results" not in given:
            options.results = f"results/shard-{options.shard.replace('/', '-of-')}"
        options.results = os.path.expanduser(options.results)
        if not options.results or options.results.startswith("~"):
            raise ValueError(f"--results names a folder, not {options.results!r}")
        return options


def parser() -> Parser:
    """Every option of every verb."""
    top = Parser(
        prog="python -m harness",
        description="Recurrent networks, measured: what each gate buys, and costs.",
        allow_abbrev=False,
    )
    top.register("action", None, Once)
    top.add_argument("verb", metavar="verb", help="; ".join(f"{v}: {about}" for v, about in VERBS.items()))
    top.add_argument(
        "--protocol", metavar="NAME", help=f"{' or '.join(protocols.PROTOCOLS)}; on a GPU classic, else quick"
    )
    top.add_argument("--corpus", metavar="NAME", help=TEXT_HELP)
    top.add_argument("--device", metavar="NAME", default="auto", help="auto: cuda where there is one")
    top.add_argument(
        "--engine", metavar="NAME", default="auto",
        help="what trains: auto (the fastest that can), library, resident, native, scan, fused, loop or book; "
        "bench times all",
    )  # fmt: skip
    top.add_argument(
        "--precision", metavar="NAME", default="ieee", help=f"of float32 products: {', '.join(PRECISIONS)} (CUDA only)"
    )
    top.add_argument(
        "--seeds", metavar="N",
        help=f"how many trainings a variant, {grids.SEEDS} if not given; or until-decided",
    )  # fmt: skip
    top.add_argument("--max", metavar="N", help="the most seeds of --seeds until-decided, 30 if not given")
    top.add_argument(
        "--variants",
        nargs="+",
        metavar="V",
        help="like rnn gru:R=1 nn.gru (`list` names them all); of your own: ./my_cell.py, package.module:Cell",
    )
    top.add_argument("--set", nargs="+", action="extend", default=[], dest="settings", metavar="FIELD=VALUE",
                     help=f"fields of the protocol: {', '.join(protocols.FIELDS)}")  # fmt: skip
    top.add_argument("--tasks", nargs="+", metavar="T", help=f"of probe: {', '.join(task_names())}")
    top.add_argument("--lengths", nargs="+", metavar="N", help="of probe, of every task")
    top.add_argument(
        "--deterministic", action="store_true", help="on CUDA the same bits twice, slower; a CPU gives them"
    )
    top.add_argument("--no-timing", action="store_true", help="bench and ablate: train only; what was timed stays")
    top.add_argument("--no-tasks", action="store_true", help="ablate: text alone, as where variants are given")
    top.add_argument("--undo", action="store_true", help="pack: put the files back where they were")
    top.add_argument("--full", action="store_true", help="sweep: every size, engine and number of seeds, for hours")
    top.add_argument("--base", metavar="DIR", help="gate: the results folder that nothing may be worse than")
    top.add_argument(
        "--limit", metavar="SHARE", default="5%", help="compare and gate: what counts as worse, 5%% if not given"
    )
    top.add_argument("--to", metavar="FILE", help="compare and gate: write the comparison as a page, like compare.html")
    top.add_argument("--json", action="store_true", help="every verb: its answer as one JSON document on stdout")
    top.add_argument(
        "--on", metavar="CLUSTER",
        help=f"where to train: {', '.join(ON)}; this machine if not given. Timing stays on this machine",
    )  # fmt: skip
    top.add_argument("--mixed", action="store_true", help="--on ray: nodes of several classes of bits may train")
    top.add_argument(
        "--shard", metavar="I/N", help="train every N-th seed, this the I-th part, into results/shard-I-of-N; see merge"
    )
    top.add_argument("--results", metavar="DIR", default="results", help="where everything is written")
    return top
