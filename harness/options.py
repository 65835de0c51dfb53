"""Declare every option of every verb once: for the command line, and for `harness.bench` and the like.

Rule: bad input is a ValueError of one line: the thing, the choices and the next step.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import harness
from harness.experiments import grids, protocols
from harness.plan import ON, PRECISIONS, task_names
from variants import registry

VERBS = {
    "bench": "train and time the cells written here and torch's: bench.csv and the report",
    "ablate": "train and time the GRU with its gates fixed, on text and four tasks: ablate.csv, tasks.csv, the report",
    "sweep": "time every engine by hidden size and number of seeds: speed.csv and the report; --full for all of it",
    "latency": "time one step of one sequence (p50, p99), and where a training step goes: latency.csv and the report",
    "reproduce": "train the models whose perplexities the book publishes, on its two protocols: reproduce.csv",
    "probe": "train on tasks that ask what a gate is for, until they are solved: tasks.csv, probes.csv",
    "exercises": "answer the four exercises of the book's chapter: gates, sizes, RNN and GRU, parts of a GRU",
    "claims": "train what nineteen claims of the literature are about, and give each a verdict: claims.csv",
    "questions": "ask of the ablation what a reviewer asks: rates chosen, stopped early, two layers, another text",
    "report": "build the tables and the report again from what is on file, training nothing",
    "pack": "put the files of runs and samples into one, raw.tar.xz, which every verb reads; --undo puts them back",
    "compare": "compare A B, two results folders or REVISION:FOLDER: what differs, and whether B is worse by --limit",
    "gate": "bench, then compare with the folder --base, for a CI: status 0 not worse, 1 worse, 3 too noisy to tell",
    "merge": "merge A B ...: take the trainings of results folders A, B, ... over into --results, and make its report",
    "export": "export FOLDER --to bibtex, parquet, mlflow or wandb: the results for another tool, below the folder",
    "new": "new cell NAME: write NAME.py, a cell to begin with, and test_NAME.py, its scalar twin; or new task NAME",
    "list": "what there is, what would run, and which runs are done",
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
    "latency": _TRAINS | {"protocol", "corpus", "variants"},
    "reproduce": _TRAINS | _AWAY | {"protocol", "corpus", "seeds"},
    "probe": _TRAINS | _AWAY | {"variants", "seeds", "tasks", "lengths"},
    "exercises": _AWAY | {"device", "engine", "seeds", "results", "no_timing"},
    "claims": _AWAY | {"device", "engine", "seeds", "results"},
    "questions": _AWAY | {"device", "engine", "seeds", "results"},
    "report": {"results", "figures", "column_width"},
    "compare": {"limit", "to"},
    "gate": _TRAINS | {"protocol", "corpus", "variants", "seeds", "no_timing", "base", "limit", "to"},
    "pack": {"results", "undo"},
    "merge": {"results"},
    "export": {"results", "to"},
    "new": set(),
    "list": _TRAINS | {"protocol", "corpus", "variants", "seeds", "max", "keys"},
}


FLAGS = ("deterministic", "no_timing", "no_tasks", "full", "undo", "json", "mixed", "keys")
WORDS = {
    "new": "cell|task NAME",
    "compare": "A B",
    "merge": "A B ...",
    "export": "FOLDER",
}  # what some verbs take before any option


EXAMPLES = {
    "bench": "bench --variants rnn gru nn.gru --seeds 5",
    "ablate": "ablate --variants gru gru:R=1 gru:Z=0 --set epochs=20",
    "sweep": "sweep --variants gru --device cpu",
    "latency": "latency --variants gru nn.gru --device cpu",
    "reproduce": "reproduce --seeds 2",
    "probe": "probe --tasks s3 lag --variants gru gru:R=1",
    "exercises": "exercises --seeds 3",
    "claims": "claims --seeds 10",
    "questions": "questions --seeds 10",
    "report": "report --results results",
    "pack": "pack --results results",
    "compare": "compare before after --limit 2%",
    "gate": "gate --base before --limit 2%",
    "merge": "merge results/shard-1-of-2 results/shard-2-of-2",
    "export": "export results --to bibtex",
    "new": "new cell my_cell",
    "list": "list --variants gru:R=1",
}
ABOUT = "Recurrent networks, measured: what each gate buys, and costs."
PROGRAM = "gru-bench" if os.path.basename(sys.argv[0]) == "gru-bench" else "python -m harness"


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
    """argparse, its errors in one line. The parser of a verb has that verb's options; others are at their default."""

    def __init__(self, verb: str = "") -> None:
        self.verb = verb
        about, example = f"{VERBS[verb][0].upper()}{VERBS[verb][1:]}." if verb else ABOUT, EXAMPLES.get(verb, verb)
        super().__init__(
            usage=f"{PROGRAM} {verb} {WORDS.get(verb, '')}".rstrip() + " [options]",
            description=textwrap.fill(about, 100),
            epilog=f"example: {PROGRAM} {example}",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.register("action", None, Once)

    def option(self, flag: str, **how: Any) -> None:
        """Declare an option, where the verb takes it; else its default alone."""
        dest = str(how.get("dest", flag.lstrip("-").replace("-", "_")))
        if not self.verb or dest in TAKES[self.verb] | {"json"}:
            self.add_argument(flag, **how)
        else:
            self.set_defaults(**{dest: how.get("default", False if how.get("action") == "store_true" else None)})

    def format_help(self) -> str:
        """Return the options of the verb; without a verb, the list of verbs."""
        if self.verb:
            return super().format_help()
        rows = "".join(f"  {verb:<10} {about}\n" for verb, about in VERBS.items())
        return (
            f"usage: {PROGRAM} VERB [options]\n\n{ABOUT}\n\nverbs:\n{rows}\n"
            f"`{PROGRAM} VERB --help` shows the options of a verb and an example; --version the version.\n"
        )

    def error(self, message: str) -> NoReturn:
        _, unknown, words = message.partition("unrecognized arguments: ")
        if unknown:
            raise ValueError(self._unknown(words.split()[0]))
        raise ValueError(f"{message} (see {self.verb} --help)")

    def _unknown(self, word: str) -> str:
        dest = {"--set": "settings"}.get(flag := word.partition("=")[0], flag.lstrip("-").replace("-", "_"))
        if flag.startswith("--") and (takes := [verb for verb, own in TAKES.items() if dest in own]):
            return f"{self.verb} takes no {flag}: it is an option of {', '.join(takes)}"
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        return strange("option", word, flags)

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The options of one verb. ValueError, in one line, for what it does not take."""
        words = sys.argv[1:] if arguments is None else list(arguments)
        verb = words[0] if words else ""
        if verb in ("-h", "--help", "help"):
            self.print_help()
            self.exit()
        if verb == "--version":
            print(f"harness {harness.__version__}")
            self.exit()
        if not verb or verb.startswith("-"):
            raise ValueError(f"a verb comes first, one of {', '.join(VERBS)}; {PROGRAM} --help says what each does")
        if verb not in VERBS:
            raise ValueError(registry.unknown("verb", verb, VERBS))
        end = next((k for k, word in enumerate(words) if k and word.startswith("-")), len(words))
        own = words[1:end] if verb in WORDS else []
        options = parser(verb).parse_args(words[1 + len(own) :])
        options.verb, options.words = verb, own
        if options.shard and "results" not in vars(options).get("given", {}):
            options.results = f"results/shard-{options.shard.replace('/', '-of-')}"
        options.results = os.path.expanduser(options.results)
        if not options.results or options.results.startswith("~"):
            raise ValueError(f"--results names a folder, not {options.results!r}")
        return options


def parser(verb: str = "") -> Parser:
    """Every option, each declared once; of a verb, those that it takes."""
    top = Parser(verb)
    top.option("--protocol", metavar="NAME", help=f"{' or '.join(protocols.PROTOCOLS)}; on a GPU classic, else quick")
    top.option("--corpus", metavar="NAME", help=TEXT_HELP)
    top.option("--device", metavar="NAME", default="auto", help="auto: cuda where there is one")
    top.option(
        "--engine", metavar="NAME", default="auto",
        help=f"what trains: auto (the fastest that can), {', '.join(registry.ENGINES)}; bench times all",
    )  # fmt: skip
    top.option(
        "--precision", metavar="NAME", default="ieee", help=f"of float32 products: {', '.join(PRECISIONS)} (CUDA only)"
    )
    top.option(
        "--seeds", metavar="N",
        help=f"how many trainings a variant, {grids.SEEDS} if not given; or until-decided",
    )  # fmt: skip
    top.option("--max", metavar="N", help="the most seeds of --seeds until-decided, 30 if not given")
    top.option(
        "--variants",
        nargs="+",
        metavar="V",
        help="like rnn gru:R=1 nn.gru (`list` names them all); of your own: ./my_cell.py, package.module:Cell",
    )
    top.option("--set", nargs="+", action="extend", default=[], dest="settings", metavar="FIELD=VALUE",
                     help=f"fields of the protocol: {', '.join(protocols.FIELDS)}")  # fmt: skip
    top.option("--tasks", nargs="+", metavar="T", help=f"{', '.join(task_names())}; of your own: ./my_task.py")
    top.option("--lengths", nargs="+", metavar="N", help="lengths of the sequences, of every task")
    top.option("--deterministic", action="store_true", help="on CUDA the same bits twice, slower; a CPU gives them")
    top.option("--no-timing", action="store_true", help="train only; what was timed stays")
    top.option("--no-tasks", action="store_true", help="text alone, as where variants are given")
    top.option("--keys", action="store_true", help="each run by its key, and whether it is done")
    top.option("--undo", action="store_true", help="put the files back where they were")
    top.option("--full", action="store_true", help="every size, engine and number of seeds, for hours")
    top.option("--base", metavar="DIR", help="the results folder that nothing may be worse than")
    top.option("--limit", metavar="SHARE", default="5%", help="what counts as worse, 5%% if not given")
    top.option(
        "--to", metavar="FILE", help="a page of the comparison, like compare.html; of export: bibtex, parquet, ..."
    )
    top.option("--figures", metavar="DIR", help="also write the figures as PDF, fonts inside, for a paper")
    top.option("--column-width", metavar="WIDTH", help="of --figures, like 3.25in, 8.3cm or 240pt; 3.25in if not given")
    top.option("--json", action="store_true", help="its answer as one JSON document on stdout")
    top.option(
        "--on", metavar="CLUSTER",
        help=f"where to train: {', '.join(ON)}; this machine if not given. Timing stays on this machine",
    )  # fmt: skip
    top.option("--mixed", action="store_true", help="--on ray: nodes of several classes of bits may train")
    top.option(
        "--shard", metavar="I/N", help="train every N-th seed, this the I-th part, into results/shard-I-of-N; see merge"
    )
    top.option("--results", metavar="DIR", default="results", help="where everything is written")
    return top
