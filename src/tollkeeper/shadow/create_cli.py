"""`tollkeeper shadow create`: an experiment from options, or from a file."""

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from tollkeeper.shadow.cli import (
    AsJson,
    ExperimentId,
    app,
    print_experiment,
    share_of,
    terminal_of,
)

__all__ = ["app"]

KINDS: Final = ("binary", "count", "continuous")
DIRECTIONS: Final = ("higher", "lower")


class Missing(StrEnum):
    """What a unit without an outcome is."""

    EXCLUDE = "exclude"
    ZERO = "zero"


Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        metavar="NAME[=SHARE]",
        help="One of them; the same shares, unless all are given.",
    ),
]
Control = Annotated[
    str | None, typer.Option(help="What others are compared with; the first variant.")
]
PrimaryMetric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME:KIND[:higher|lower]",
        help="What decides; KIND is binary, count or continuous, higher is better.",
    ),
]
Guardrails = Annotated[
    list[str] | None,
    typer.Option(
        "--guardrail",
        metavar="NAME:KIND[:higher|lower[:TOLERANCE]]",
        help="What must not become worse, by more than the tolerance: 0.02 is 2 %.",
    ),
]
Units = Annotated[
    int | None, typer.Option(min=1, help="Counted units after which all is said; 10000.")
]
Looks = Annotated[
    int | None, typer.Option(min=1, help="Planned evaluations: only they decide; 50.")
]
Margin = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Least lift worth a deployment; 0.05 is 5 %."),
]
ProfileName = Annotated[str | None, typer.Option(help="Of the gate; default@1.")]
IsAdaptive = Annotated[
    bool, typer.Option("--adaptive", help="Weights follow the evidence, at each look.")
]
Floor = Annotated[
    float | None,
    typer.Option(min=0, max=0.5, help="Least share of a variant, with --adaptive; 0.05."),
]
HoldoutText = Annotated[
    str | None,
    typer.Option(
        metavar="GROUP=SHARE", help="Units that all experiments of the group leave alone."
    ),
]
NamespaceText = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=START:END",
        help="Its part, from 0 to 1: parts of two running experiments never overlap.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(min=1, help="Seconds after its assignment in which outcomes count; 3600."),
]
MissingChoice = Annotated[
    Missing | None,
    typer.Option(help="A unit without an outcome of the metric: not counted, or a 0."),
]
Description = Annotated[str | None, typer.Option(help="What it is about.")]
DefinitionFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE|-", help="The definition as the API takes it, instead of options."),
]
Tenant = Annotated[str | None, typer.Option(help="Whose it is; the key's.")]
IsStarted = Annotated[bool, typer.Option("--start", help="Start it at once.")]


@app.command()
def create(
    context: typer.Context,
    experiment_id: ExperimentId,
    variants: Variants = None,
    control: Control = None,
    metric: PrimaryMetric = None,
    guardrails: Guardrails = None,
    units: Units = None,
    looks: Looks = None,
    margin: Margin = None,
    profile: ProfileName = None,
    adaptive: IsAdaptive = False,
    floor: Floor = None,
    holdout: HoldoutText = None,
    namespace: NamespaceText = None,
    window: Window = None,
    missing: MissingChoice = None,
    description: Description = None,
    file: DefinitionFile = None,
    tenant: Tenant = None,
    start: IsStarted = False,
    as_json: AsJson = False,
) -> None:
    """Create an experiment; one that is there alike is left as it is."""
    options: dict[str, object] = {
        "--variant": variants, "--control": control, "--metric": metric,
        "--guardrail": guardrails, "--units": units, "--looks": looks, "--margin": margin,
        "--profile": profile, "--adaptive": adaptive or None, "--floor": floor,
        "--holdout": holdout, "--namespace": namespace, "--window": window,
        "--missing": missing, "--description": description,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None and value != []}
    if file is not None:
        if given:
            raise typer.BadParameter(f"give --file or {next(iter(given))}, and not both")
        definition = _definition_in(file, experiment_id)
    else:
        definition = _definition_of(given)
    terminal = terminal_of(context)
    created = terminal.call_shadow(
        lambda remote: remote.create(experiment_id, definition, tenant_id=tenant, start=start)
    )
    if as_json:
        terminal.json(created.experiment)
        return
    remark = "" if created.is_new else " (it was there already, defined alike)"
    print_experiment(terminal, created.experiment, as_json=False, remark=remark)


def _definition_of(given: dict[str, object]) -> dict[str, object]:
    """Return the definition that the options mean; what is left out, the service fills in."""
    names, metric = given.get("--variant"), given.get("--metric")
    if not isinstance(names, list) or len(names) < 2:
        raise typer.BadParameter("give at least two", param_hint="--variant")
    if not isinstance(metric, str):
        raise typer.BadParameter("say what decides: NAME:KIND", param_hint="--metric")
    metrics = [_metric_of("--metric", metric)]
    if "--missing" in given:
        metrics[0]["missing"] = str(given["--missing"])
    guardrails = given.get("--guardrail", [])
    assert isinstance(guardrails, list)
    metrics += [_metric_of("--guardrail", word) for word in guardrails]
    if "--window" in given:
        metrics = [{**each, "window_s": given["--window"]} for each in metrics]
    definition: dict[str, object] = {"variants": _variants_of(names), "metrics": metrics}
    for option in ("control", "units", "looks", "margin", "profile", "description"):
        if f"--{option}" in given:
            definition[option] = given[f"--{option}"]
    if "--floor" in given and "--adaptive" not in given:
        raise typer.BadParameter("is of --adaptive experiments", param_hint="--floor")
    if "--adaptive" in given:
        definition["adaptive"] = {"floor": given["--floor"]} if "--floor" in given else {}
    if "--holdout" in given:
        definition["holdout"] = _holdout_of(str(given["--holdout"]))
    if "--namespace" in given:
        definition["namespace"] = _namespace_of(str(given["--namespace"]))
    return definition


def _variants_of(words: Sequence[str]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for word in words:
        name, equals, text = word.rpartition("=")
        if not equals:
            meant, colon, share_text = word.rpartition(":")
            if colon and share_of(share_text) is not None:
                raise typer.BadParameter(
                    f"{word!r} gives a share as {meant}={share_text}", param_hint="--variant"
                )
            found.append({"name": word})
            continue
        share = share_of(text)
        if not name or share is None:
            raise typer.BadParameter(
                f"{word!r} is not NAME or NAME=SHARE, with a share from 0 to 1",
                param_hint="--variant",
            )
        found.append({"name": name, "weight": share})
    if len({"weight" in each for each in found}) > 1:
        raise typer.BadParameter("give all of them a share, or none", param_hint="--variant")
    return found


def _metric_of(option: str, word: str) -> dict[str, object]:
    name, *rest = word.split(":")
    most = 3 if option == "--guardrail" else 2
    is_known = 1 <= len(rest) <= most and name and rest[0] in KINDS
    if not is_known or (len(rest) > 1 and rest[1] not in DIRECTIONS):
        tolerance = "[:TOLERANCE]" if option == "--guardrail" else ""
        raise typer.BadParameter(
            f"{word!r} is not NAME:KIND[:higher|lower{tolerance}], with KIND one of "
            f"{', '.join(KINDS)}",
            param_hint=option,
        )
    found: dict[str, object] = {"name": name, "kind": rest[0]}
    if len(rest) > 1:
        found["direction"] = rest[1]
    if len(rest) > 2:
        tolerance_share = share_of(rest[2])
        if tolerance_share is None:
            raise typer.BadParameter(f"{rest[2]!r} in {word!r} is not 0 to 1", param_hint=option)
        found["tolerance"] = tolerance_share
    return found


def _holdout_of(word: str) -> dict[str, object]:
    group, _, text = word.rpartition("=")
    share = share_of(text)
    if not group or share is None:
        raise typer.BadParameter(f"{word!r} is not GROUP=SHARE", param_hint="--holdout")
    return {"group": group, "share": share}


def _namespace_of(word: str) -> dict[str, object]:
    name, _, texts = word.rpartition("=")
    first, _, second = texts.partition(":")
    start, end = share_of(first), share_of(second)
    if not name or start is None or end is None:
        raise typer.BadParameter(
            f"{word!r} is not NAME=START:END, each from 0 to 1", param_hint="--namespace"
        )
    return {"name": name, "start": start, "end": end}


def _definition_in(file: Path, experiment_id: str) -> dict[str, object]:
    """Read a definition; what it must be, the service judges."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        found = json.loads(text)
    except OSError as error:
        raise _bad_file(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise _bad_file(f"{file} is not JSON in UTF-8: {error}") from error
    if not isinstance(found, dict):
        raise _bad_file(f"{file} is not a JSON object")
    named = found.pop("experiment_id", experiment_id)
    if named != experiment_id:
        raise _bad_file(f"{file} is of experiment {named}, and not of {experiment_id}")
    for name in ("state", "tenant_id"):
        if name in found:
            option = "--start" if name == "state" else "--tenant"
            raise _bad_file(f"{file} has {name}: use {option}")
    return found


def _bad_file(fault: str) -> typer.BadParameter:
    return typer.BadParameter(fault, param_hint="--file")
