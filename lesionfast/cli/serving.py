"""Commands that use a trained model: predict, export, push, app, monitor."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionfast.cli.base import USE, Device, Json, app, argument, option, print_json
from lesionfast.console import echo, print_table
from lesionfast.diagnoses import split_unquoted, unquote
from lesionfast.errors import LesionfastError, pluralize
from lesionfast.run import Run

if TYPE_CHECKING:
    from lesionfast.serving.outputs import Count

Model = argument(str, "A run, an exported folder, a model.onnx file or hf://user/name.")
Inputs = argument(
    list[str] | None,
    "Images, folders, globs, tables, datasets, or zip, tar, HDF5, Parquet or .npz files.",
)
OutFile = option(Path | None, "File to write: .csv, .jsonl or .parquet (default: stdout).")
Format = option(str | None, "csv, jsonl or parquet (default: from the suffix of --out).")
Isic = option(bool, "Write a submission to the ISIC 2018 challenge.", "--isic")
Images = option(
    Path | None,
    "Folder, or zip, tar, HDF5, Parquet or .npz file of a table's images (default: its folder).",
)
Separator = option(
    str | None, "Character between the fields of a CSV file (default: from its header)."
)
ImageColumn = option(str | None, "Column of a table with the image (default: by its name).")
Renamed = option(
    list[str] | None, "Column of a table with another name, such as gender=sex.", "--map"
)
Metadata = option(list[str] | None, "Metadata of all images, such as age=55.", "--set")
Views = option(int | None, "Dihedral views to average, 1 to 8 (default: as many as the run).")
Resume = option(bool, "Continue an unfinished --out.", "--resume")
Part = option(str | None, "Predict one part of the images, such as 3/8.", "--shard")
All = option(
    bool,
    "Write all columns: the decision of the metrics, the model's own probabilities, flags, …",
    "--all",
)
Cost = option(
    str | None,
    "Costs of errors that the advice weighs, such as missed_melanoma=30,missed_cancer=10 (default: "
    "those of the model, initially these and needless_excision=1).",
)
Prior = option(
    str | None,
    "Class shares of your clinic, such as mel=0.02,nv=0.9, that probabilities are moved to; the "
    "other classes share the rest.",
)
PriorOrEstimate = option(
    str | None,
    "Class shares of your clinic, such as mel=0.02,nv=0.9, that probabilities are moved to; the "
    "other classes share the rest. Or estimate: from these pictures.",
    "--prior",
)
WithFeatures = option(bool, "Add the image features: feature_0 and so on.", "--features")
LogFile = option(
    Path | None,
    "Append each answer to this file, a line of JSON, for lesionfast monitor; no picture or name.",
    "--log-predictions",
)
Join = option(bool, "Join the files of all shards, named as arguments.", "--join")


COLUMNS = """
\b
column          meaning
image           the name of the image
advice          what to do, in one sentence
refer           True: have the lesion examined
prediction_set  the classes that can't be ruled out, most probable first
p_mel, …        the calibrated probability of each class (of more than 7
                classes: of the gravest, then the most frequent); empty for
                an image unlike the training images
error           why there is no prediction; then the exit code is 2
In CSV a text or a column that begins like a formula (=, +, -, @) gets an
apostrophe before it, so that no spreadsheet runs it.

\b
more with --all
likely               the most probable class; empty without a decision
decision, rule       the decision that the metrics of the run are about
no_decision          why there is no decision; empty if there is one
uncalibrated_mel, …  the model's own probabilities, of every image
mel_at_…, …          whether it reaches a threshold chosen on validation
outlier_score        how unlike the training images it is
outlier              True: too unlike them
not_known            the metadata that was missing
"""


@app.command(rich_help_panel=USE, epilog=COLUMNS)
def predict(
    model: Model,
    inputs: Inputs = None,
    out: OutFile = None,
    format: Format = None,
    isic: Isic = False,
    images: Images = None,
    image: ImageColumn = None,
    separator: Separator = None,
    renamed: Renamed = None,
    metadata: Metadata = None,
    tta: Views = None,
    resume: Resume = False,
    shard: Part = None,
    every: All = False,
    cost: Cost = None,
    prior: PriorOrEstimate = None,
    features: WithFeatures = False,
    join: Join = False,
    log: LogFile = None,
    device: Device = "auto",
) -> None:
    """Predict images, one row each: what to do, and how probable each class is.

    The advice weighs probabilities by stated costs, see --cost. An image unlike
    the training images gets no decision and no probability: every class is in
    its set, and it is referred.

    Example: lesionfast predict runs/20260102-030405-densenet121 photos --set age=55 --set sex=male

    On many machines: the same command with --shard 1/8 --out part1.csv and so on
    in each, then: lesionfast predict --join part*.csv --out all.csv
    """
    kind = choose_kind(out, format, isic)
    table = {"images": images, "image": image, "separator": separator}
    table |= {"renamed": read_pairs("--map", renamed, "gender=sex")}
    table |= {"metadata": read_pairs("--set", metadata, "age=55")}
    choices = {**table, "views": tta, "resume": resume, "shard": shard}
    choices |= {"features": features, "all_columns": every, "cost": cost, "prior": prior}
    choices |= {"log": log}
    if join:
        count = join_files([model, *(inputs or [])], out, kind, choices)
    else:
        count = predict_files(model, inputs or [], out, kind, choices | {"device": device})
    report_count(count, out, kind)


def predict_files(
    model: str, inputs: list[str], out: Path | None, kind: str, choices: dict[str, Any]
) -> "Count":
    """Predict the inputs; raises `LesionfastError` if there is none, and for wrong options."""
    from lesionfast.serving.inputs import NAME_SOME
    from lesionfast.serving.outputs import predict_inputs
    from lesionfast.serving.predictor import check_stated

    check_stated(choices["cost"], choices["prior"], choices["views"])
    if not inputs:
        raise LesionfastError(f"no input after {model}. {NAME_SOME}")
    return predict_inputs(model, inputs, out, kind, **choices)


def choose_kind(out: Path | None, format: str | None, isic: bool) -> str:
    """Return the format to write; raises `LesionfastError` for two of them."""
    if isic and format:
        raise LesionfastError("--isic is a format of its own. Type it without --format.")
    from lesionfast.serving.outputs import choose_format

    return "isic" if isic else choose_format(out, format)


FLAGS = {"renamed": "--map", "metadata": "--set", "views": "--tta", "all_columns": "--all"}
FLAGS |= {"log": "--log-predictions"}


def join_files(paths: list[str], out: Path | None, kind: str, choices: dict[str, Any]) -> "Count":
    """Join the files of all shards; raises `LesionfastError` for an option that predicts."""
    given = [FLAGS.get(name, f"--{name}") for name, value in choices.items() if value]
    if given:
        raise LesionfastError(
            f"--join reads files of predictions, so {given[0]} changes nothing. Leave it out."
        )
    if out is None:
        raise LesionfastError("--join writes a file. Name it with --out, such as --out all.csv.")
    from lesionfast.serving.joining import join_parts

    return join_parts(paths, out, kind)


def report_count(count: "Count", out: Path | None, kind: str) -> None:
    """Print the file and how many images it has; raises `LesionfastError` if some failed."""
    from lesionfast.reporting.advice.sentences import word

    if out is not None:
        echo(f"{pluralize(count.images, 'image')}, {count.failed:,} failed", stderr=True)
        if count.limits:
            echo("\n  ".join([word("limits.of_predictions"), *count.limits]), stderr=True)
        echo(out)
    if count.failed:
        raise LesionfastError(
            f"no prediction for {count.failed:,} of {pluralize(count.images, 'image')}; "
            + ("the file leaves them out." if kind == "isic" else "see the column 'error'.")
        )


def read_pairs(option: str, typed: list[str] | None, example: str) -> dict[str, str]:
    """Return {"age": "55"} for ["age=55"]; raises `LesionfastError` for anything else."""
    pairs = {}
    for pair in typed or []:
        name, *value = split_unquoted(pair, "=")
        if not value:
            raise LesionfastError(
                f"{option} {pair} has no value. Type for example {option} {example}"
            )
        pairs[unquote(name)] = "=".join(value)
    return pairs


RunFolder = argument(Path, "A run.")
ModelFolder = option(Path, "New folder for the model.")
Onnx = option(bool, "Write model.onnx too.", "--onnx")
Int8 = option(bool, "Write model.onnx and model-int8.onnx too; measure what 8 bits lose.", "--int8")


@app.command(rich_help_panel=USE)
def export(
    run: RunFolder,
    to: ModelFolder,
    onnx: Onnx = False,
    int8: Int8 = False,
    cost: Cost = None,
    prior: Prior = None,
) -> None:
    """Export a run as one folder that holds the whole model, without a pickle.

    The model keeps --cost and --prior: whoever predicts with it gets them.

    Example: lesionfast export runs/20260102-030405-densenet121 --to model --onnx
    """
    from lesionfast.serving import export

    echo(export.export(Run.open(run), to, onnx=onnx, int8=int8, cost=cost, prior=prior))


Source = argument(Path, "A run, or an exported folder.")
Repository = argument(str, "Repository on the Hugging Face hub: user/name.")
Public = option(bool, "Make a new repository public instead of private.", "--public")


@app.command(rich_help_panel=USE)
def push(source: Source, name: Repository, public: Public = False, onnx: Onnx = False) -> None:
    """Upload a run to the Hugging Face hub, and print the address to predict with.

    Example: lesionfast push runs/20260102-030405-densenet121 clinic/lesions
    """
    from lesionfast.serving import export

    address = export.push(source, name, public=public, onnx=onnx)
    echo(f"if the repository is new, it is {'public' if public else 'private'}", stderr=True)
    echo(address)


Port = option(int, "Port of the page; 0 takes a free one.")
Host = option(
    str, "Address to listen on; 0.0.0.0 opens the page to the network, which takes a --token."
)
Token = option(
    str | None,
    "Token that page and API ask for, 12 characters or more (default: none); as a variable no list "
    "of processes shows it.",
    envvar="LESIONFAST_TOKEN",
)


Language = option(
    str | None, "Language of the page: en or de (default: as the browser asks).", "--lang"
)


@app.command(name="app", rich_help_panel=USE)
def open_page(
    model: Model,
    port: Port = 7860,
    host: Host = "127.0.0.1",
    token: Token = None,
    cost: Cost = None,
    prior: Prior = None,
    log: LogFile = None,
    lang: Language = None,
    device: Device = "auto",
) -> None:
    """Serve a web page and an HTTP API on this machine that predict images.

    It fetches nothing from the network and keeps no upload, but with
    --log-predictions a line about each. Stop it with Ctrl-C.

    Example: lesionfast app runs/20260102-030405-densenet121
    """
    from lesionfast.serving.web.app import serve

    stated = {"cost": cost, "prior": prior, "log": log, "lang": lang}
    serve(model, host=host, port=port, token=token, device=device, **stated)


Log = argument(Path, "The file that --log-predictions wrote.")
Every = option(str, "Period: week, month, or a number of pictures (default: by the log's length).")
Figure = option(Path | None, "Folder for the figure (default: drift/ beside the log).", "--figures")


@app.command(rich_help_panel=USE)
def monitor(
    run: RunFolder, log: Log, every: Every = "", figures: Figure = None, json: Json = False
) -> None:
    """Check whether pictures have drifted from those that a run was checked on.

    It compares a log of predictions with the run's validation: ages, sexes, sites
    and answers by the population stability index, and the share of pictures
    unlike the training images. It says if there are too few pictures to tell.

    Example: lesionfast monitor runs/20260102-030405-densenet121 answers.jsonl
    """
    from lesionfast.serving.monitoring.display import (
        describe_drift,
        draw_drift,
        drift_tables,
        drift_to_dict,
    )
    from lesionfast.serving.monitoring.drift import measure_drift
    from lesionfast.serving.monitoring.log import read_log

    opened = Run.open(run)
    drift = measure_drift(opened, read_log(log), every)
    figure = draw_drift(opened, drift, figures or log.absolute().parent / "drift")
    if json:
        print_json(drift_to_dict(drift, figure))
        return
    echo(*describe_drift(drift), "", sep="\n")
    for table in drift_tables(drift):
        print_table(table)
    echo(figure)
