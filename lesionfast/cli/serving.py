"""Commands that use what was trained: predict, export, push, app."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lesionfast.cli.base import app
from lesionfast.console import counting_bar
from lesionfast.diagnoses import split_unquoted, unquote
from lesionfast.errors import LesionfastError
from lesionfast.runs import Run

MODEL = "A run, an exported folder, a model.onnx or hf://user/name."


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help=MODEL)],
    inputs: Annotated[
        list[str], typer.Argument(help="Images, folders, globs, zip files, or a CSV file.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write (.csv, .jsonl, .parquet); else stdout.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="csv, jsonl or parquet; default: by the suffix of --out.")
    ] = None,
    isic: Annotated[
        bool, typer.Option("--isic", help="Write a submission to the ISIC 2018 challenge.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="Where the images of a CSV file are; default: beside it.")
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            help="Character between the fields of a CSV file; default: found from its header."
        ),
    ] = None,
    known: Annotated[
        list[str] | None, typer.Option("--set", help="What is known of all, such as age=55.")
    ] = None,
    tta: Annotated[
        int | None, typer.Option(help="Dihedral views to average, 1 to 8; default: the run's.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished --out.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Say what a model makes of images, one row each.

    A row has the decision and its rule, probabilities, flags at the thresholds of validation, the
    prediction set, whether to refer, and how unlike the training images it is. An image that can't
    be read gets a row with its error; then the exit code is 2.

    Example: lesionfast predict runs/20260102-030405-densenet121 photos --set age=55 --set sex=male
    """
    if isic and format:
        raise LesionfastError("--isic is a format of its own. Type it without --format.")
    if tta is not None and not 1 <= tta <= 8:
        raise LesionfastError(f"--tta is {tta}; type 1 to 8 views.")
    from lesionfast.serving.batch import check_out, predict_to
    from lesionfast.serving.inputs import find_items, tables_among
    from lesionfast.serving.outputs import format_of
    from lesionfast.serving.predictor import Predictor

    kind = "isic" if isic else format_of(out, format)
    if out is not None:
        check_out(out, kind, resume)
    told = pairs_of(known or [])
    find_items(inputs)  # a name that is wrong is told before the model is loaded
    predictor = Predictor(model, views=tta, device=device)
    predictor.check(told)
    items = find_items(
        inputs,
        images=images,
        metadata=told,
        image_column=predictor.bundle.image_column,
        columns=predictor.bundle.encoder.columns,
        separator=separator,
    )
    options = {
        "--set": told,
        "--images": images and str(images.absolute()),
        "--separator": separator,
    }
    with counting_bar("images") as bar:
        count = predict_to(
            *(predictor, items, out, kind),
            resume=resume,
            progress=lambda n: bar(n, None),
            options=options | {"the table": tables_among(inputs)},
        )
    if out is not None:
        print(f"{count.images} images, {count.failed} of them failed", file=sys.stderr)
        print(out)
    if count.failed:
        raise LesionfastError(
            f"{count.failed} of {count.images} images have no prediction; the column 'error' says "
            "why."
        )


def pairs_of(given: list[str]) -> dict[str, Any]:
    """Return {"age": "55"} of ["age=55"]; raises `LesionfastError` for anything else."""
    told = {}
    for each in given:
        name, *value = split_unquoted(each, "=")
        if not value:
            raise LesionfastError(f"--set {each} has no value. Type for example --set age=55")
        told[unquote(name)] = "=".join(value)
    return told


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run.")],
    to: Annotated[Path, typer.Option(help="Folder to make.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="And one of 8-bit numbers; its loss is measured.")
    ] = False,
) -> None:
    """Write a run as one folder that is the whole model, with no pickle in it.

    Example: lesionfast export runs/20260102-030405-densenet121 --to model --onnx
    """
    from lesionfast.serving.export import export as write

    print(write(Run.open(run), to, onnx=onnx, int8=int8))


@app.command()
def push(
    source: Annotated[Path, typer.Argument(help="A run, or an exported folder.")],
    name: Annotated[str, typer.Argument(help="Where to on the Hugging Face hub: user/name.")],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody; else the repository is private.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="With model.onnx, of a run.")] = False,
) -> None:
    """Share a run on the Hugging Face hub, and print the address to predict with.

    Example: lesionfast push runs/20260102-030405-densenet121 clinic/lesions
    """
    from lesionfast.serving.hub import push as upload

    address = upload(source, name, public=public, onnx=onnx)
    print(f"a new repository is {'public' if public else 'private'}", file=sys.stderr)
    print(address)


@app.command(name="app")
def open_page(
    model: Annotated[str, typer.Argument(help=MODEL)],
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes any free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen at; any other opens it to the network.")
    ] = "127.0.0.1",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Open a page on this machine that says what a model makes of an image, and an HTTP API.

    Nothing is fetched from outside, and no upload is kept. Stop it with Ctrl-C.

    Example: lesionfast app runs/20260102-030405-densenet121
    """
    from lesionfast.serving.app import serve

    serve(model, host=host, port=port, device=device)
