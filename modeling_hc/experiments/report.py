# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Tables, figures and results/README.md, drawn from the numbers that `modeling-hc experiment` left.

A difference is paired: two runs of a seed saw the same blocks in the same order. Its standard error is over seeds, and
"holds" or "does not hold" is said where Student's 95 % interval of the mean lies on one side of zero.
"""

import json
import math
import re
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from scipy.stats import t

from .results import BASELINE, FILE, Runs, load_results

MAIN = "llama-0.3m"
MOE = "olmoe-0.3m-0.8m"
VIT = "vit-fashion"
FAMILY, LARGER, CONTINUED = "family-0.3m", "family-2.6m", "family-continued"
TABLES_ONLY = """{% for name in experiments %}
# {{ name }}

{{ table(name) }}

{% endfor %}"""
COLOURS = {"residual": "tab:gray", "shc-4": "tab:orange", "dhc-4": "tab:blue"}


@dataclass(frozen=True)
class Claim:
    """An ordering: that `variant` ends with a lower loss, or other measure, than `other`, or a higher one.

    With `than`, that the difference is lower in one experiment than in another one.
    """

    says: str
    variant: str
    lower: bool | None  # None: a question, or that there is little difference, which no interval can show
    other: str
    experiment: str = MAIN
    than: str | None = None
    measure: str = "loss"


CLAIMS = [
    Claim("DHC x4 is better than the residual network (Table 1)", "dhc-4", True, BASELINE),
    Claim("SHC x4 is better than the residual network (Table 2)", "shc-4", True, BASELINE),
    Claim("One stream, dynamic, is worse than the residual network (Table 1)", "dhc-1", False, BASELINE),
    Claim("Four streams are better than two (Table 1)", "dhc-4", True, "dhc-2"),
    Claim("Eight streams against four (Table 1: hardly better)", "dhc-8", None, "dhc-4"),
    Claim("Dynamic is better than static, four streams (Table 2)", "dhc-4", True, "shc-4"),
    Claim("Dynamic against static, two streams with tanh (Table 2: no better)", "dhc-2", None, "shc-2"),
    Claim("Without tanh against with it, four streams (Table 1: as good)", "dhc-4-no-tanh", None, "dhc-4"),
    Claim("Frozen width connections are worse than trained ones (Table 3)", "dhc-4-frozen-width", False, "dhc-4"),
    Claim("Frozen write weights against trained ones (Table 3: hardly worse)", "dhc-4-frozen-beta", None, "dhc-4"),
    Claim(
        "Width connections matter more than write weights (Table 3)", "dhc-4-frozen-width", False, "dhc-4-frozen-beta"
    ),
    Claim("A mixture of experts gains more than a dense model (Tables 6, 1)", "dhc-4", True, BASELINE, MOE, than=MAIN),
]
OPEN = [
    Claim("Output projections not rescaled, against divided by sqrt(n)", "dhc-4-rescaling-none", None, "dhc-4"),
    Claim("Multiplied by sqrt(n), against divided", "dhc-4-rescaling-multiply", None, "dhc-4"),
    Claim("The same at 0.8M: not rescaled, against divided", "dhc-4-rescaling-none", None, "dhc-4", "llama-0.8m"),
    Claim("Not rescaled: four streams against one, which never is", "dhc-4-rescaling-none", None, "dhc-1"),
    Claim("Not rescaled: four streams against two", "dhc-4-rescaling-none", None, "dhc-2-rescaling-none"),
    Claim("Not rescaled: eight streams against four", "dhc-8-rescaling-none", None, "dhc-4-rescaling-none"),
    Claim("Not rescaled: dynamic against static", "dhc-4-rescaling-none", None, "shc-4-rescaling-none"),
    Claim("Mean of the streams at the end, against their sum", "dhc-4-mean", None, "dhc-4"),
    Claim("Gates without weight decay, against with it", "dhc-4-undecayed-gates", None, "dhc-4"),
    Claim("All connections frozen, against the residual network", "dhc-4-frozen", None, BASELINE),
    Claim("Converted to DHC x4 and trained on, against trained on as it is", "dhc-4", None, BASELINE, "continued"),
    Claim("What DHC x4 gains at 0.3M parameters, against 0.1M", "dhc-4", None, BASELINE, MAIN, than="llama-0.1m"),
    Claim("What it gains at 0.8M, against 0.3M", "dhc-4", None, BASELINE, "llama-0.8m", than=MAIN),
    Claim("What it gains at 2.6M, against 0.8M", "dhc-4", None, BASELINE, "llama-2.6m", than="llama-0.8m"),
    Claim("What it gains after four times the tokens, at 0.3M", "dhc-4", None, BASELINE, "longer", than=MAIN),
]
VARIANTS = [
    Claim(
        "mHC with the gates of its paper, 0.01, against the residual network",
        "mhc-4-gate-0.01",
        None,
        BASELINE,
        FAMILY,
    ),
    Claim("Identity-HC with these gates, against it", "identity-4-gate-0.01", None, BASELINE, FAMILY),
    Claim("mHC with gates of 1, against it", "mhc-4-gate-1", None, BASELINE, FAMILY),
    Claim("Identity-HC with gates of 1, against it", "identity-4-gate-1", None, BASELINE, FAMILY),
    Claim("Frac-connections, against it", "frac-4", None, BASELINE, FAMILY),
    Claim("mHC: gates of 1 against 0.01", "mhc-4-gate-1", None, "mhc-4-gate-0.01", FAMILY),
    Claim(
        "Does the carry matter? mHC against identity-HC, gates of 1", "mhc-4-gate-1", None, "identity-4-gate-1", FAMILY
    ),
    Claim("mHC-lite against mHC, gates of 1", "mhc-lite-4-gate-1", None, "mhc-4-gate-1", FAMILY),
    Claim("KromHC against mHC, gates of 1", "kromhc-4-gate-1", None, "mhc-4-gate-1", FAMILY),
    Claim(
        "Without a home stream against with one, mHC, gates of 1", "mhc-4-gate-1-no-home", None, "mhc-4-gate-1", FAMILY
    ),
    Claim("DHC against mHC with gates of 1", "dhc-4", None, "mhc-4-gate-1", FAMILY),
    Claim("SHC against mHC with gates of 1", "shc-4", None, "mhc-4-gate-1", FAMILY),
    Claim(
        "At 2.6M parameters: mHC with gates of 1, against the residual network", "mhc-4-gate-1", None, BASELINE, LARGER
    ),
    Claim("DHC against mHC with gates of 1, there", "dhc-4", None, "mhc-4-gate-1", LARGER),
    Claim(
        "A trained model converted to mHC with gates of 1, and trained on", "mhc-4-gate-1", None, BASELINE, CONTINUED
    ),
    Claim("Converted to identity-HC with gates of 1", "identity-4-gate-1", None, BASELINE, CONTINUED),
    Claim("Converted to DHC", "dhc-4", None, BASELINE, CONTINUED),
    Claim("Converted to mHC: gates of 1 against 0.01", "mhc-4-gate-1", None, "mhc-4-gate-0.01", CONTINUED),
]
VISION = [
    Claim("SHC x2 ends with a lower loss than the residual ViT", "shc-2", True, BASELINE, VIT),
    Claim("SHC x2 is more accurate than it (Table 11)", "shc-2", False, BASELINE, VIT, measure="accuracy"),
    Claim("DHC x2 ends with a lower loss than it", "dhc-2", True, BASELINE, VIT),
    Claim("DHC x2 is more accurate than it (Table 11)", "dhc-2", False, BASELINE, VIT, measure="accuracy"),
    Claim("Loss of DHC x4, against it", "dhc-4", None, BASELINE, VIT),
    Claim("Accuracy of DHC x4, against it", "dhc-4", None, BASELINE, VIT, measure="accuracy"),
    Claim("Loss of DHC x2, against SHC x2", "dhc-2", None, "shc-2", VIT),
]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def error(self) -> float:
        return self.deviation / math.sqrt(len(self.values))

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval of the mean."""
        return t.ppf(0.975, len(self.values) - 1) * self.error if len(self.values) > 1 else math.inf

    def text(self, form: str = "+.3f") -> str:
        """Writes mean ± standard error; one seed has no error."""
        error = f" ± {self.error:{form.lstrip('+')}}" if len(self.values) > 1 else " (one seed)"
        return f"{self.mean:{form}}{error}".replace("-", "−")  # noqa: RUF001


def final_value(result: dict[str, Any], text: str | None = None, measure: str = "loss") -> float:
    """Returns the loss after training, or another measure, on the first validation text unless another is named."""
    return result["final"][text or next(iter(result["final"]))][measure]


def losses(runs: Runs, variant: str, text: str | None = None, measure: str = "loss") -> Estimate:
    return Estimate(tuple(final_value(result, text, measure) for result in runs[variant].values()))


def difference(
    runs: Runs, variant: str, other: str = BASELINE, text: str | None = None, measure: str = "loss"
) -> Estimate:
    """Returns the final loss, or other measure, of a variant less that of another, of the seeds that both have."""
    seeds = sorted(runs[variant].keys() & runs[other].keys())
    pairs = [(runs[variant][seed], runs[other][seed]) for seed in seeds]
    return Estimate(tuple(final_value(a, text, measure) - final_value(b, text, measure) for a, b in pairs))


def tokens_to_reach(result: dict[str, Any], loss: float) -> float | None:
    """Returns after how many tokens a run first has this held-out loss, or None; between evaluations on a line."""
    before = None
    for point in result["evaluations"]:
        if point["loss"] <= loss:
            if before is None:
                return point["tokens"]
            part = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return before["tokens"] + part * (point["tokens"] - before["tokens"])
        before = point
    return None


def convergence(runs: Runs, variant: str) -> tuple[Estimate | None, int]:
    """Returns the part of the residual run's tokens after which a variant has that run's last loss.

    Returns:
        Over the seeds that reach it, or None; and how many seeds do not.
    """
    parts = []
    seeds = sorted(runs[variant].keys() & runs[BASELINE].keys())
    for seed in seeds:
        baseline = runs[BASELINE][seed]
        tokens = tokens_to_reach(runs[variant][seed], baseline["evaluations"][-1]["loss"])
        if tokens is not None:
            parts.append(tokens / baseline["tokens"])
    return Estimate(tuple(parts)) if parts else None, len(seeds) - len(parts)


def step_ratio(folder: Path, experiment: str, variant: str) -> float | None:
    """Returns the time of a training step over the residual model's, from step-time.json where it is there."""
    path = folder / experiment / "step-time.json"
    steps = json.loads(path.read_text())["steps"] if path.exists() else {}
    return steps[variant]["ratio"] if variant in steps else None


def least_time(folder: Path, runs: Runs, experiment: str) -> float:
    """Returns the smallest "time needed" of the variants that all seeds bring to the residual model's loss."""
    times = []
    for variant in runs.keys() - {BASELINE}:
        part, missing = convergence(runs, variant)
        ratio = step_ratio(folder, experiment, variant)
        if part and not missing and ratio:
            times.append(part.mean * ratio)
    return min(times)


def table(folder: Path, runs: Runs, experiment: str) -> str:
    """Renders the table of an experiment."""
    final = next(iter(next(iter(runs.values())).values()))["final"]
    texts, of_images = list(final), "accuracy" in next(iter(final.values()))
    header = ["variant", "parameters", "seeds", f"loss on {texts[0]}", "accuracy" if of_images else "bits per byte"]
    if BASELINE in runs:
        header += [f"difference, {text}" for text in texts] + ["difference, accuracy"] * of_images
        header += ["tokens needed", "step time", "time needed"]
    rows = [header, ["---"] * len(header)]
    for variant, by_seed in runs.items():
        parameters = next(iter(by_seed.values()))["parameters"]
        row = [variant, f"{parameters:,}", str(len(by_seed)), losses(runs, variant).text(".3f")]
        if of_images:
            row.append(losses(runs, variant, measure="accuracy").text(".3f"))
        else:
            row.append(f"{losses(runs, variant, measure='bits_per_byte').mean:.3f}")
        if BASELINE in runs and variant != BASELINE:
            row += [difference(runs, variant, text=text).text() for text in texts]
            row += [difference(runs, variant, measure="accuracy").text()] if of_images else []
            part, missing = convergence(runs, variant)
            ratio = step_ratio(folder, experiment, variant)
            if part is None or missing:  # a mean over those that do would flatter
                row += ["not by all seeds" if part else "never", f"{ratio:.2f}" if ratio else ""]
            else:
                row.append(part.text(".2f"))
                time = Estimate(tuple(value * ratio for value in part.values)) if ratio else None
                row += [f"{ratio:.2f}", time.text(".2f")] if time else []
        rows.append(row + [""] * (len(header) - len(row)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def streams_table(runs: Runs) -> str:
    """Renders what became of the streams of hyper-connected variants: `health` after training, means over seeds."""
    names = ("effective_rank", "second_singular_value", "forward_gain", "input_cosine")
    rows = ["| variant | " + " | ".join(name.replace("_", " ") for name in names) + " |", "| --- " * 5 + "|"]
    for variant, by_seed in runs.items():
        last = [result["evaluations"][-1]["health"] for result in by_seed.values()]
        if all("effective_rank" in values for values in last):
            means = (statistics.fmean(values[name] for values in last) for name in names)
            rows.append(f"| {variant} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n".join(rows)


def lm_eval_table(folder: Path, experiment: str) -> str:
    """Renders the scores in lm-eval.json: of each variant, the mean over seeds, and the standard error over items.

    All seeds answer the same items, so that more seeds do not make the latter smaller.
    """
    report = json.loads((folder / experiment / "lm-eval.json").read_text())
    variants = list(dict.fromkeys(re.sub(r"-s\d+$", "", model["name"]) for model in report["models"]))
    rows = [["task", "items", *variants], ["---"] * (2 + len(variants))]
    for task, metrics in report["results"].items():
        row = [task, str(report["tasks"][task]["num_items"])]
        for variant in variants:
            scores = [s for name, s in metrics["acc"].items() if re.fullmatch(rf"{re.escape(variant)}-s\d+", name)]
            mean, error = (statistics.fmean(score[key] for score in scores) for key in ("value", "stderr"))
            row.append(f"{mean:.3f} ± {error:.3f}")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def verdict(claim: Claim, estimate: Estimate) -> str:
    """Says what the interval allows: of a claim whether it holds, of an open question which side is lower."""
    if abs(estimate.mean) <= estimate.interval:
        return "not told apart" if claim.lower is None else "not decided"
    if claim.lower is None:
        lower, higher = ("more", "less") if claim.than else (f"lower {claim.measure}", f"higher {claim.measure}")
        return lower if estimate.mean < 0 else higher
    return "holds" if (estimate.mean < 0) == claim.lower else "the reverse holds"


def claims_table(experiments: dict[str, Runs], claims: list[Claim]) -> str:
    """Renders what is claimed or asked, what was measured, and the verdict."""
    of_losses = " of the losses" if {claim.measure for claim in claims} == {"loss"} else ""
    rows = [f"| | difference{of_losses} | 95 % interval | |", "| --- | --- | --- | --- |"]
    for claim in claims:
        estimate = measured(experiments, claim)
        if estimate is None:
            rows.append(f"| {claim.says} | | | not run |")
        else:
            half = "" if math.isinf(estimate.interval) else f"± {estimate.interval:.3f}"
            rows.append(f"| {claim.says} | {estimate.text()} | {half} | {verdict(claim, estimate)} |")
    return "\n".join(rows)


def measured(experiments: dict[str, Runs], claim: Claim) -> Estimate | None:
    """Returns what a claim is about, over the seeds that have all of it; None if there is none."""
    names = [claim.experiment, *([claim.than] if claim.than else [])]
    pairs = [[experiments.get(name, {}).get(v, {}) for v in (claim.variant, claim.other)] for name in names]
    seeds = sorted(set.intersection(*(set(runs) for pair in pairs for runs in pair)))
    value = partial(final_value, measure=claim.measure)
    gaps = [[value(runs[seed]) - value(other[seed]) for seed in seeds] for runs, other in pairs]
    values = tuple(gap - sum(rest) for gap, *rest in zip(*gaps, strict=True))
    return Estimate(values) if values else None


def compare(committed: Runs, again: Runs) -> tuple[bool, str]:
    """Compares a repeated pair of runs with the committed ones.

    Returns:
        Whether the repeated difference lies in the 95 % interval for one more seed; and a text that tells.
    """
    expected, new = difference(committed, "dhc-4"), difference(again, "dhc-4")
    allowed = t.ppf(0.975, len(expected.values) - 1) * expected.deviation * math.sqrt(1 + 1 / len(expected.values))
    agrees = abs(new.mean - expected.mean) <= allowed
    return agrees, (
        f"dhc-4 less residual: {new.mean:+.4f}; committed: {expected.text('+.4f')} over {len(expected.values)} seeds; "
        f"another seed lies within ± {allowed:.4f} of that, 95 times of 100. {'Agrees.' if agrees else 'DISAGREES.'}"
    )


def draw(folder: Path, experiments: dict[str, Runs]) -> list[Path]:
    """Draws every figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = []
    for experiment, runs in experiments.items():
        if BASELINE not in runs:
            continue
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 1.8 + 0.22 * len(runs)), layout="constrained")
        draw_curves(left, runs)
        draw_differences(right, runs)
        figure.suptitle(experiment)
        paths.append(folder / experiment / "losses.png")
        figure.savefig(paths[-1], dpi=110)
        pyplot.close(figure)
    if MAIN in experiments:
        figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
        draw_curves(axes[0], experiments[MAIN])
        plain = re.compile(r"residual|[sd]hc-\d")
        draw_differences(axes[1], {name: runs for name, runs in experiments[MAIN].items() if plain.fullmatch(name)})
        draw_sizes(axes[2], experiments)
        paths.append(folder / "evidence.png")
        figure.savefig(paths[-1], dpi=110)
        pyplot.close(figure)
        figure = draw_health(pyplot, experiments[MAIN])
        paths.append(folder / MAIN / "health.png")
        figure.savefig(paths[-1], dpi=110)
        pyplot.close(figure)
    return paths


def draw_curves(axis: Any, runs: Runs) -> None:
    """Draws held-out losses by tokens: mean and range over seeds."""
    for variant, colour in COLOURS.items():
        if variant not in runs:
            continue
        curves = [[point["loss"] for point in result["evaluations"]] for result in runs[variant].values()]
        tokens = [point["tokens"] / 1e6 for point in next(iter(runs[variant].values()))["evaluations"]]
        columns = list(zip(*curves, strict=True))
        axis.plot(tokens, [statistics.fmean(c) for c in columns], color=colour, label=variant)
        axis.fill_between(tokens, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.2)
    ends = [min(point["loss"] for point in result["evaluations"]) for v in runs.values() for result in v.values()]
    starts = [result["evaluations"][len(result["evaluations"]) // 4]["loss"] for result in runs[BASELINE].values()]
    axis.set(
        xlabel="million tokens (mean and range over seeds)",
        ylabel="held-out loss (nats)",
        ylim=(min(ends) - 0.03, max(starts)),
    )
    axis.grid(alpha=0.3)
    axis.legend()


def draw_differences(axis: Any, runs: Runs) -> None:
    """Draws final losses less the residual model's: every seed, the mean and its 95 % interval."""
    names = [name for name in runs if name != BASELINE]
    for at, name in enumerate(names):
        estimate = difference(runs, name)
        colour = COLOURS.get(name, "tab:blue" if name.startswith("dhc") else "tab:orange")
        axis.plot(estimate.values, [at] * len(estimate.values), ".", color=colour, alpha=0.5)
        half = math.nan if math.isinf(estimate.interval) else estimate.interval
        axis.errorbar(estimate.mean, at, xerr=half, fmt="o", color=colour, capsize=3)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(
        yticks=range(len(names)), yticklabels=names, xlabel="final held-out loss less the residual model's (95 %)"
    )
    axis.invert_yaxis()
    axis.grid(alpha=0.3, axis="x")


def draw_sizes(axis: Any, experiments: dict[str, Runs]) -> None:
    """Draws what DHC x4 gains against the number of parameters: dense models and mixtures of experts."""
    for family, marker in (("llama", "o"), ("olmoe", "s")):
        points = [
            (next(iter(runs[BASELINE].values()))["parameters"], difference(runs, "dhc-4"))
            for name, runs in experiments.items()
            if name.startswith(family) and {BASELINE, "dhc-4"} <= runs.keys()
        ]
        points.sort(key=lambda point: point[0])
        if points:
            half = [math.nan if math.isinf(estimate.interval) else estimate.interval for _, estimate in points]
            axis.errorbar(
                [size for size, _ in points],
                [estimate.mean for _, estimate in points],
                yerr=half,
                fmt=f"{marker}-",
                capsize=3,
                label=family,
            )
    axis.axhline(0, color="black", lw=0.8)
    axis.set(
        xscale="log", xlabel="parameters of the residual model", ylabel="DHC x4: final loss less the residual's (95 %)"
    )
    axis.grid(alpha=0.3)
    axis.legend()


def draw_health(pyplot: Any, runs: Runs) -> Any:
    """Draws the health of the connections by tokens, for the seed that all have."""
    names = ("forward_gain", "backward_gain", "alpha_spread", "beta_spread", "dynamic_size", "input_cosine")
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), layout="constrained", sharex=True)
    for axis, name in zip(axes.flat, names, strict=True):
        for variant in ("residual", "shc-4", "dhc-2", "dhc-4", "dhc-8", "dhc-4-no-tanh"):
            if variant not in runs:
                continue
            points = next(iter(runs[variant].values()))["evaluations"]
            line = [(p["tokens"] / 1e6, p["health"][name]) for p in points if name in p["health"]]
            if line:
                axis.plot(*zip(*line, strict=True), label=variant)
        axis.set_title(name.replace("_", " "))
        axis.grid(alpha=0.3)
    axes[1, 2].legend(fontsize="small")
    for axis in axes[1]:
        axis.set_xlabel("million tokens")
    return figure


def write_report(folder: Path) -> list[Path]:
    """Draws the figures and renders README.md of a results folder.

    Raises:
        ValueError: nothing is there, or a result is damaged.
    """
    experiments = load_results(folder)
    if not experiments:
        raise ValueError(f"{folder} holds no result (EXPERIMENT/{FILE}) of `modeling-hc experiment run`.")
    text = render(folder, experiments)
    path = folder / "README.md"
    paths = draw(folder, experiments)
    path.write_text(text, encoding="utf-8")
    return [*paths, path]


def render(folder: Path, experiments: dict[str, Runs]) -> str:
    """Fills the folder's template, whose numbers are expressions over the results; without one, gives the tables."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    path = folder / "README.md.jinja"
    template = path.read_text(encoding="utf-8") if path.exists() else TABLES_ONLY
    main = experiments.get(MAIN, {})
    return environment.from_string(template).render(
        experiments=experiments,
        spread=[difference(main, variant).deviation for variant in main if variant != BASELINE],
        claims=claims_table(experiments, CLAIMS),
        open_questions=claims_table(experiments, OPEN),
        variants=claims_table(experiments, VARIANTS),
        streams=lambda name: streams_table(experiments[name]),
        vision=claims_table(experiments, VISION),
        lm_eval=lambda name: lm_eval_table(folder, name),
        table=lambda name: table(folder, experiments[name], name),
        loss=lambda name, variant: losses(experiments[name], variant),
        least_time=lambda name: least_time(folder, experiments[name], name),
    )
