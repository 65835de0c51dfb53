"""Say how it was measured and what to know before believing it: setting, caveats, failures, limits, machines.

`methods` is the paragraph to cite.
"""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd
from markupsafe import Markup

from harness.analysis import stats
from harness.experiments import grids, protocols
from harness.experiments.questions import PROTOCOL as QUESTIONED
from harness.formatting import count, format_range, join_and, pct, percent, plain, pluralize, ppl, token_name, unique
from harness.record import tables
from harness.record import tables as record_tables
from harness.report import select
from harness.report.sections import Cell, Table


def brief(table: pd.DataFrame) -> str:
    """The setting in a line."""
    parts = [
        f"protocol {' and '.join(unique(table.protocol))}",
        *unique(table.corpus),
        *unique(table.device),
        *[f"learning rate {plain(table.lr.iloc[0])} for all"] * (len(table) > 1 and table.lr.nunique() == 1),
    ]
    return ", ".join([*parts, seeds(table)])


TREATED = {  # what is trained on: corpus._prepared
    "lines": "letters alone, in lower case, line by line, the lines joined with nothing between them, as in the book",
    "whole": "letters alone, in lower case, one space for all else, as in the book\u2019s later edition",
    "spaces": "case and punctuation are kept, and each run of white space, line ends too, is one space",
    "raw": "everything is kept as it is, lines and all",
}


OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def command(verb: str, row: pd.Series) -> str:
    """Return the command that makes this row again, its baseline included, to be typed at a shell."""
    total = np.nan_to_num(row.seeds) + np.nan_to_num(row.failed)
    words = arguments(verb, row, int(total))
    baseline, place, variant = row.baseline, str(row.get("cell") or ""), str(row.variant)
    if place:  # known by its name only once its file is given; so is the cell that it is an ablation of
        base, _, fixed = variant.partition(":")
        variant = f"{place}:{fixed}" if fixed else place
        baseline = place if baseline == base else baseline
    return shlex.join([*words, "--variants", *dict.fromkeys([*([baseline] if baseline else []), variant])])


def arguments(verb: str, row: pd.Series, seeds: int) -> list[str]:
    """The command line of a row's protocol, text and device."""
    name, *changes = str(row.protocol).split(",")
    words = ["python", "-m", "harness", verb]
    words += ["--protocol", name] if name else []
    for change in changes:
        words += ["--set", change]
    words += ["--corpus", str(row.corpus).split(" ")[0] if str(row.corpus).startswith("embedded") else str(row.corpus)]
    words += ["--device", str(row.device)] if row.device else []
    return words + (["--seeds", str(seeds)] if seeds else [])


def setting(data: tables.Results, table: pd.DataFrame) -> str:
    """Say what was run: protocol, text, device, seeds."""
    parts = []
    for label in unique(table.protocol):
        known = data.protocols[data.protocols.protocol == label]
        text = f"Protocol {label}"
        if len(known):
            p = known.iloc[0]
            unit = "windows" if p.sampling == "windows" else "characters"
            rest = f"the next {count(p.heldout_characters)} held out"
            if p.validation_characters > 0:
                rest = f"the next {count(p.validation_characters)} to validate on, {rest}"
            if shares_of_whole(p):
                rest += " (the whole text, cut by position: 90, 5 and 5 %)"
            text += (
                f": {count(p.train_characters)} {unit} to learn from, {rest}; "
                f"{count(p.hidden)} hidden units, {count(p.epochs)} epochs, batch {count(p.batch_size)}, "
                f"{count(p.num_steps)} steps, {optimizer(p)}, gradient norm at most "
                f"{plain(p['clip'])}, initial values \u201c{p.init}\u201d"
            )
            if p.match == "parameters":
                text += f"; hidden units such that each variant has as many parameters as {grids.BASELINE} has"
        parts.append(text)
    words = token_name(table.protocol) == "word"  # which never meet
    for how in unique(data.protocols.text[data.protocols.protocol.isin(table.protocol)]):
        how = "whole" if words and how == "lines" else how
        parts += [f"Of the text, {TREATED[how]}"] if how in TREATED else []
    parts += [_tokens(p) for _, p in data.protocols[data.protocols.protocol.isin(table.protocol)].iterrows()]
    parts = [part for part in dict.fromkeys(parts) if part]
    shas = unique(table.corpus_sha256)
    parts.append("Text: " + ", ".join(unique(table.corpus)) + (f" (SHA-256 {shas[0][:12]})" if len(shas) == 1 else ""))
    parts.append("Device: " + ", ".join(unique(table.device)))
    parts.append(seeds(table))
    return ". ".join(p for p in parts if not p.endswith(": ")) + "."


def shares_of_whole(p: pd.Series) -> bool:
    """Whether the parts are the shares in which `book` cuts a text, whatever its length."""
    rest = p.heldout_characters
    return bool(
        str(p["name"]) == "book"
        and p.validation_characters == rest
        and 18 * rest <= p.train_characters < 18 * rest + 20
    )


def _tokens(p: pd.Series) -> str:
    """Say what else is done to a text, and how its tokens are read; '' for characters as `text` has them, one-hot."""
    said = []
    if p.get("case") in ("keep", "lower") or p.get("punctuation") in ("keep", "drop"):
        kept = {"keep": "kept", "lower": "lowered", "drop": "dropped"}
        said += [f"{what} is {kept[p[what]]}" for what in ("case", "punctuation") if p[what] in kept]
    if p.get("tokens") in ("bytes", "words"):
        most = f", the {count(p.max_vocabulary)} most frequent known" if p.max_vocabulary > 0 else ""
        said.append(
            f"its tokens are {p.tokens}{most}; steps are {p.tokens}, while parts are cut by characters, so that bits "
            "per character compare with those of other tokens"
        )
    if p.get("embedding", 0) > 0:
        said.append(f"each token is read as {count(p.embedding)} trained numbers, not as one-hot")
    return f"Also, {'; '.join(said)}" if said else ""


def optimizer(p: pd.Series) -> str:
    """How a protocol updates weights: `Adam at learning rate 0.003 that falls along a cosine`."""
    decay = f"weight decay {plain(p.weight_decay)}" if p.weight_decay > 0 else ""
    extra = [f"momentum {plain(p.momentum)}"] * int(p.momentum > 0) + [decay] * bool(decay)
    name = OPTIMIZERS.get(str(p.optimizer), "SGD")
    name += f" with {join_and(extra)}" if extra else ""
    rate = (
        "a learning rate chosen for each variant (see below)" if p.rate == "chosen" else f"learning rate {plain(p.lr)}"
    )
    how = [f"rises over {count(p.warmup)} updates"] * int(p.warmup > 0)
    how += ["falls along a cosine"] * int(p.schedule == "cosine")
    return f"{name} at {rate}{f' that {join_and(how)}' if how else ''}"


def seeds(table: pd.DataFrame) -> str:
    text = f"{format_range(table.seeds[table.seeds > 0])} finished seeds a variant"
    failed = int(table.failed.fillna(0).sum())
    return text + (f", {pluralize(failed, 'training')} failed" if failed else "")


def methods(data: tables.Results) -> list[str]:
    """The paragraph to cite: what was done, with the n of this report."""
    said = []
    for title, table in (("bench", data.bench), ("ablation", data.ablate)):
        if table.empty:
            continue
        said.append(f"The {title}. {setting(data, table)}")
        text = (
            f"A perplexity is exp of the mean loss a {token_name(table.protocol)}; over seeds it is the geometric "
            "mean, with the 95 % Student t interval of the mean log-perplexity, which ends at perplexity 1, the least "
            "there is."
        )
        if table.delta_nats.notna().any():
            base, level = next(iter(unique(table.baseline)), grids.BASELINE), select.level(table)
            n, many = format_range(table.pairs.dropna()), pluralize(select.family(table), "comparison")
            text += (
                f" Differences to {base} are of log-perplexity, paired by seed (n = {n}), with a {level} % t "
                f"interval; p is the exact paired sign-flip test (sampled above {stats.EXACT_UP_TO} pairs), adjusted "
                f"by Holm over {many}. Equivalent means that the whole interval lies inside \u00b1{stats.MARGIN_NATS} "
                f"nats/{token_name(table.protocol, True)}, a margin stated before running; worse and better need p "
                f"under {stats.ALPHA} after Holm and an interval that excludes 0; everything else is undecided. The t "
                "interval and not the BCa "
                "bootstrap: for 3 to 20 "
                "seeds the latter covers 72 to 93 % where it says 95, measured (stats.py)."
            )
            looks = table.looks.max()
            if looks > 1:
                text += (
                    f" The seeds were looked at up to {count(looks)} times, at numbers fixed beforehand, and no more "
                    f"were trained once every verdict was decided: each p is multiplied by {count(looks)} and the "
                    f"intervals of differences are {select.level(table)} % ones."
                )
        rounds = table.speed_samples.dropna()
        if len(rounds):
            text += (
                f" Speed is of one seed alone, whole training steps, {format_range(rounds)} samples a variant, each a "
                "fresh process, every contender once a round in random order; median and quartiles. A ratio is the "
                "median of the rounds\u2019 ratios, with the exact interval of a median between order statistics (at "
                "least 94 %: the range of 5 to 8 rounds). Which of two is faster cannot be told where that interval "
                "holds 1, or where the median is no farther from 1 than one contender timed twice is from itself."
            )
        said.append(text)
    return said


def machine(data: tables.Results) -> Table | None:
    """environments.csv on its side: a line a fact, a column a machine."""
    rows = data.environments
    if rows.empty:
        return None
    facts = [c for c in rows if c != "environment" and (rows[c].astype(str) != "").any()]
    heads = [("", "", False), *[(str(e) or "unnamed", "", False) for e in rows.environment]]
    return Table("machine", "Where it ran", heads, [[Cell(c), *[Cell(str(v)) for v in rows[c]]] for c in facts])


PAST = 1.01  # times the lowest of the mean curve: from here on training went past its best
LONGEST_ERROR = 2_000  # characters shown of one error


def caveats(data: tables.Results) -> list[Markup]:
    """Say what a reader must know before believing the above; one line for both tables where both share it."""
    found: dict[Markup, list[str]] = {}
    for verb, title, table in (("bench", "Bench", data.bench), ("ablate", "Ablation", data.ablate)):
        for text in of_table(data, verb, table):
            found.setdefault(text, []).append(title)
    said = [Markup("<b>{}.</b> {}").format(" and ".join(titles).capitalize(), text) for text, titles in found.items()]
    two = [t for t in (data.bench, data.ablate) if len(t)]
    if len(two) == 2 and any(set(two[0][c]) != set(two[1][c]) for c in ("protocol", "corpus_sha256", "device")):
        said.append(Markup("Bench and ablation differ in protocol, text or device: compare only within a table."))
    machines = unique(data.environments.cpu.where(data.environments.device == "cpu", data.environments.device_name))
    if len(machines) > 1:
        said.append(Markup("Measured on {} machines ({}).").format(len(machines), join_and(machines)))
    if "true" in set(data.environments.dirty.str.lower()) and not any("not committed" in text for text in found):
        said.append(Markup("Some code had changes that were not committed: the commit does not say all that ran."))
    blocks = data.speed[data.speed.error == ""]
    if blocks.disturbed.any():
        said.append(
            Markup(
                "{} of {} timed blocks were disturbed by other processes; left out where a clean one exists.{}"
            ).format(int(blocks.disturbed.sum()), len(blocks), _disturbed(blocks))
        )
    return said


def _disturbed(blocks: pd.DataFrame) -> str:
    """Which contenders have samples without an undisturbed block: their speeds are too low, and uncertain."""
    samples = blocks.groupby(["session", "label", "round"], sort=False).disturbed.all().groupby("label", sort=False)
    found = [f"{label} ({int(all_of.sum())} of {len(all_of)})" for label, all_of in samples if all_of.any()]
    return f" Samples with none, whose speed is of a busy machine: {', '.join(found)}." if found else ""


def _crossing(crossing: int, pairs: int) -> list[Markup]:
    said = "{} of {} pairs cross machines of two classes of bits: their difference is also that of the machines."
    return [Markup(said).format(count(crossing), count(pairs))] * bool(crossing)


def of_table(data: tables.Results, verb: str, table: pd.DataFrame) -> list[Markup]:
    """Those of one table."""
    if table.empty:
        return []
    trained = select.finished(data, table)
    said = _crossing(*select.crossing(trained, table))
    dirty = set(data.environments.environment[data.environments.dirty.str.lower() == "true"])
    if changed := int(trained.environment.isin(dirty).sum()):
        said.append(
            Markup(
                "{} of {} trainings ran code with changes that were not committed: the commit does not say all that "
                "ran."
            ).format(count(changed), count(len(trained)))
        )
    base = dict(zip(data.protocols.protocol, data.protocols.name, strict=True))
    for label in unique(table.protocol):
        if base.get(label) in protocols.SHORT:
            said.append(
                Markup(
                    "The <strong>{}</strong> protocol, sized for minutes on two CPU cores: it shows which way "
                    "things lean. It is not the chapter\u2019s protocol (classic)."
                ).format(base[label])
            )
        if "," in label:
            said.append(Markup("A changed protocol: <code>{}</code>.").format(label))
    if len(unique(table.protocol)) > 1 or len(unique(table.corpus_sha256)) > 1:
        said.append(Markup("Protocols or texts are mixed: compare only rows that agree in both."))
    if any(c.startswith("embedded") for c in unique(table.corpus)):
        said.append(
            Markup(
                "<strong>Not The Time Machine</strong> but the embedded text, which the package generates for tests."
            )
        )
    if (share := table.unknown_share.max()) > 0:
        said.append(
            Markup(
                "<strong>Not every symbol is known</strong>: {} of the text are symbols that the limit on the "
                "vocabulary leaves out. Each is predicted as one unknown symbol and scored as one of all that were "
                "left out, equally likely, so that perplexities are of the whole alphabet."
            ).format(pct(100 * share))
        )
    many, pairs = select.family(table), table.pairs.dropna()
    least = grids.seeds_needed(many)
    if many and len(pairs) and pairs.max() < least:
        said.append(
            Markup(
                "<strong>Too few seeds</strong>: {} give no p below {}, and Holm over {} needs {} before any "
                "difference can count. <code>{}</code> adds what is missing."
            ).format(pluralize(pairs.max(), "pair"), f"{min(1.0, 2 / 2 ** pairs.max()):.3g}",
                     pluralize(many, "comparison"), least, shlex.join(arguments(verb, table.iloc[0], least)))
        )  # fmt: skip
    names, points = [], select.differences(data, table)
    for _, row in table.iterrows():
        if select.verdict(row) == "undecided":
            own = points.loc[points.label == select.label(row, table), "delta_nats"]
            more = stats.seeds_to_decide(own.to_numpy(), family=many) if len(own) > 1 else None
            names.append(f"{row.variant}{f' (about {more:,} more seeds would decide)' if more else ''}")
    if names:
        said.append(Markup("Undecided, which is not \u201cno difference\u201d: {}.").format("; ".join(names)))
    said += [Markup.escape(x) for x in (_past_their_best(data, table), early_stopping(table)) if x]
    counted = select.anchors(data, table).query("model == '1-gram'").heldout_perplexity
    worse = table[(table.heldout_perplexity > counted.max()) & (table.train_perplexity < counted.max())]
    if len(worse):
        said.append(
            Markup(
                "<strong>Learned by heart</strong>: {} of {} variants do worse on held-out text than counting single "
                "characters (1-gram, {}), with a mean training perplexity of {}. Held-out differences between "
                "networks that have memorised their text say little of what a gate is for."
            ).format(len(worse), int(table.heldout_perplexity.notna().sum()), ppl(float(counted.max())),
                     " to ".join(dict.fromkeys(map(ppl, (worse.train_perplexity.min(), worse.train_perplexity.max())))))
        )  # fmt: skip
    if failed := int(table.failed.fillna(0).sum()):
        text = Markup("{} failed. Failures are counted, <a href='#failures'>listed</a>, and in no mean.")
        said.append(text.format(pluralize(failed, "training")))
    return said


def _past_their_best(data: tables.Results, table: pd.DataFrame) -> Markup:
    """Variants that were better on the validation part before the last epoch, by the mean curve over seeds."""
    own = select.finished(data, table)
    known = data.protocols[data.protocols.protocol.isin(table.protocol)]
    if not (known.validation_characters > 0).any() or table.best_perplexity.notna().any():
        return Markup("")  # nothing to judge by; or the table scores each variant where it was best as well
    curves = data.curves[["run", "epoch", "heldout_perplexity"]].merge(own[["run", "label"]], on="run")
    curves = curves.dropna(subset=["heldout_perplexity"]).sort_values("epoch", kind="stable")
    found = []
    for label, rows in curves.groupby("label", sort=False):
        mean = np.exp(np.log(rows.heldout_perplexity).groupby(rows.epoch).mean())  # the least of each seed is luck too
        if mean.iloc[-1] > PAST * mean.min():
            found.append(
                f"{label} (lowest at epoch {mean.idxmin():g}, {ppl(mean.min())}; at the end, {ppl(mean.iloc[-1])}; "
                f"n = {pluralize(rows.run.nunique(), 'seed')})"
            )
    if not found:
        return Markup("")
    return Markup(
        "Past their best on the validation part by more than {} when training ended, by the mean curve: {}. Every "
        "variant was trained for as many epochs; none was stopped early."
    ).format(f"{100 * (PAST - 1):g}\u00a0%", "; ".join(found))


def early_stopping(table: pd.DataFrame) -> str:
    """Whether scoring each training where its validation loss was lowest changes a verdict; '' where nothing was."""
    known = table[table.best_perplexity.notna()]
    if known.empty:
        return ""
    compared = known[(known.verdict != "") & (known.best_verdict != "")]
    moved = compared[compared.verdict != compared.best_verdict]
    text = (
        "Each training is also scored with the weights of the epoch at which its validation loss was lowest, of fixed "
        "epochs that are the same for all. "
    )
    if compared.empty:
        return text + "There is no comparison to change."
    if moved.empty:
        return text + f"That changes none of {pluralize(len(compared), 'verdict')}."
    words = [
        f"{r.variant} is {r.verdict} at the end ({pct(percent(r.delta_nats), True)}) and {r.best_verdict} there "
        f"({pct(percent(r.best_delta_nats), True)})"
        for r in moved.itertuples()
    ]
    return text + f"That changes {len(moved)} of {pluralize(len(compared), 'verdict')}: {'; '.join(words)}."


def limits(data: tables.Results) -> list[str]:
    """Say what the report does not show."""
    said = []
    names = unique(pd.concat([data.bench.corpus, data.ablate.corpus]))
    unit = token_name([*data.bench.protocol, *data.ablate.protocol])
    if len(names) == 1:
        said.append(
            f"One text ({names[0]}), read {unit} by {unit}. Other texts and tasks may order variants otherwise."
        )
    for label in unique(pd.concat([data.bench.protocol, data.ablate.protocol])):
        known = data.protocols[data.protocols.protocol == label]
        if len(known):
            p = known.iloc[0]
            if p.rate == "chosen":
                rate, unfair = "a learning rate chosen for each variant from one grid", ""
            else:
                rate = f"one learning rate ({plain(p.lr)}) for every variant"
                unfair = " One that another rate would suit better is shown at a disadvantage."
                if data.questions.empty and label == QUESTIONED:
                    unfair += " `make questions` has each difference with rates chosen, two layers, another text."
            if p.match == "parameters":
                size = "one number of parameters for every variant, which then differ in hidden units"
            else:
                size = f"one size ({count(p.hidden)} hidden units), so that variants differ in parameters"
            said.append(f"{label}: {rate}, and {size}.{unfair}")
            if p.sampling == "windows":
                said.append(
                    f"{label}: every window begins from a zero state, so no gate can be of use beyond "
                    f"{count(p.num_steps)} characters."
                )
                if overlap := max(0, int(p.num_steps - p.validation_characters)):
                    said.append(
                        f"{label}: the first {count(overlap)} held-out characters also lie in the last training "
                        "windows, as in the book. The n-grams are counted and scored on the same characters."
                    )
            else:
                said.append(
                    f"{label}: the state is carried over the whole text but gradients stop at a window, so a gate that "
                    "matters over longer distances than a window can look useless here."
                )
    return said


def failures(data: record_tables.Results) -> list[tuple[str, str, str]]:
    """(what, where, error): every failed training and timing, equal errors of one variant together."""
    out = []
    runs = data.runs[data.runs.error != ""]
    for (variant, engine, label, error), rows in runs.groupby(["variant", "engine", "protocol", "error"], sort=False):
        seeds = ", ".join(count(s) for s in sorted(rows.seed.dropna()))
        keys = ", ".join(unique(rows.run))
        out.append(
            (
                f"{variant} ({engine or 'no engine'})",
                f"training, {label}, seed {seeds or 'unknown'}; {keys}",
                _cut(error),
            )
        )
    probed = data.probes[data.probes.error != ""]
    for (variant, engine, label, error), rows in probed.groupby(["variant", "engine", "protocol", "error"], sort=False):
        which = ", ".join(count(s) for s in sorted(rows.seed.dropna()))
        out.append((f"{variant} ({engine or 'no engine'})", f"probe, {label}, seed {which or 'unknown'}", _cut(error)))
    timed = data.speed[data.speed.error != ""]
    for (label, session, error), rows in timed.groupby(["label", "session", "error"], sort=False):
        out.append((str(label), f"timing, session {session}, {pluralize(len(rows), 'block')}", _cut(error)))
    named = set(runs.variant) | set(timed.variant)
    for table in (data.bench, data.ablate):
        for _, row in table[(table.error != "") & ~table.variant.isin(named)].iterrows():
            out.append((str(row.variant), f"{count(row.failed)} failed", _cut(row.error)))
    return out


def _cut(error: object) -> str:
    text = str(error)
    more = len(text) - LONGEST_ERROR
    return text if more <= 0 else f"{text[:LONGEST_ERROR]} ... ({more:,} more characters in the CSV)"
