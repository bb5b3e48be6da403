"""A plain PyTorch and timm loop against lesionfast: same backbone, weights, split, size, epochs.

    python tests/bench/vs_timm.py --data HAM10000 --epochs 5 --rounds 3

The plain loop is that of timm's own training script: timm's transforms without RandAugment, a
DataLoader over image files with a worker for each core, channels-last, bfloat16 where the hardware
is fast at it, AdamW, a cosine schedule with a warm-up epoch; all layers learn from the start. Each
system runs in a process of its own, in turns. Peak memory is that of the main process, without
the workers.
"""

import argparse
import time
from functools import partial
from pathlib import Path

from side_by_side import compare, configuration, figures, pretrained, prior_of, timed


def run_timm(arguments: argparse.Namespace) -> dict:
    """Train as timm's train.py does on the same rows."""
    import timm
    import torch
    from timm_loop import Loop, build_loader

    from lesionfast.data.loaders import pick_device
    from lesionfast.data.split import load_dataset
    from lesionfast.models.precision import choose_precision

    config, folder = configuration(arguments), Path(arguments.folder)
    df, device = load_dataset(config), pick_device(config.device)
    df["file"] = [folder / "images" / Path(path).name for path in df["path"]]
    classes, file = sorted(df["target"].unique()), pretrained(config, folder)
    given = {"pretrained_cfg_overlay": {"file": file}} if file else {}
    torch.manual_seed(config.seed)
    started = time.perf_counter()
    model = timm.create_model(
        config.arch, pretrained=bool(file), num_classes=len(classes), **given
    ).to(device, memory_format=torch.channels_last)
    train, valid, test = (
        build_loader(rows, classes, model, config.size, config.batch_size, name == "train")
        for name, rows in ((name, df[df["split"] == name]) for name in ("train", "valid", "test"))
    )
    prepared = time.perf_counter()
    dtype = getattr(torch, choose_precision(config.precision, device))
    enabled = dtype != torch.float32
    loop = Loop(model, partial(torch.autocast, device.type, dtype=dtype, enabled=enabled))
    loop.fit(train, valid, arguments.epochs, config.weight_decay)
    seconds = {"prepare": prepared - started, "fit": time.perf_counter() - prepared}
    seconds["image"] = loop.epoch_seconds / len(train.dataset)
    found, seconds["predict"] = timed(lambda: loop.predict(test))
    trained = len(train.dataset) * arguments.epochs
    return figures(loop.predict(valid), found, classes, prior_of(df, classes), seconds, trained)


if __name__ == "__main__":
    compare(__file__, "timm", run_timm, __doc__.splitlines()[0])
