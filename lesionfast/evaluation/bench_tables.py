"""The terminal table of a machine's speed."""

from typing import TYPE_CHECKING, Any

from lesionfast.evaluation.tables import add_columns, new_table

if TYPE_CHECKING:
    from rich.table import Table

PARTS_OF_A_TRAINING = {  # as of training.bench
    "decode": "decode and resize files, once",
    "read": "read a batch from the cache",
    "augment": "augment a batch",
    "forward": "forward pass, in training mode",
    "backward": "backward pass",
    "bare step": "bare step: forward, backward, AdamW",
    "step": "whole training step",
    "bare forward": "bare forward pass, in inference mode",
    "prediction": "prediction of the validation images",
    "files": "lesionfast predict on files, one view",
    "features": "features of the frozen backbone, once",
}


def bench_table(found: dict[str, Any]) -> "Table":
    """Return what `training.bench.bench` found, one row a part."""
    about = found["machine"]
    title = "{arch} at {size} pixels, {batch_size} a step".format(**about)
    caption = "{device}, {threads} threads, {precision}, torch {torch}".format(**about)
    table = new_table(title, caption)
    add_columns(table, "part", "images a second", "share")
    shares = {"step": found["step_share"], "prediction": found["prediction_share"]}
    shares["files"] = found["file_share"]
    for name, label in PARTS_OF_A_TRAINING.items():
        share = f"{shares[name]:.2f} of the bare" if name in shares else ""
        table.add_row(label, f"{found['parts'][name]:,.0f}", share)
    table.add_row(
        "head epoch, 8,500 cached features", f"{found['feature_epoch_seconds']:.2f} s", ""
    )
    if "compile_gain" in found:
        told = f"{found['compile_gain']:.2f} of the bare"
        table.add_row("step with --compile", f"{found['compile_seconds']:.0f} s at first", told)
    for where, size in found["peak_memory"].items():
        table.add_row(f"peak memory, {where}", f"{size / 2**30:.2f} GiB", "")
    return table
