"""What a backbone gives for images: computed once, and kept in the cache where possible."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from lesionfast.cache import Append, cache_folder, has_room, kept_array, open_array
from lesionfast.console import counting_bar
from lesionfast.data.augment import turn
from lesionfast.data.images import Pixels, Progress, SourcePixels
from lesionfast.data.loaders import images_at_once
from lesionfast.models.backbones import Backbone
from lesionfast.models.fusion import FusionModel
from lesionfast.models.inference import as_images, for_inference, in_eval_mode
from lesionfast.models.precision import autocast, choose_precision

logger = logging.getLogger("lesionfast")

VERSION = 6  # part of every key: raise it when the features of the same weights change
TURN = "view"  # begins `about` of a dihedral view, which is the same wherever an image stands
DIGEST = 4  # float32 numbers at the end of a kept row of features: the digest of its pixels
PLAIN = (int, float, str, type(None))  # settings of a module, as numbers of channels


@dataclass(frozen=True, eq=False)
class Features:
    """The pooled features (n, F) that a model gives for rows of pixels uint8 (N, H, W, 3), float32.

    With `stages` they are the feature maps of the first stages, float16 (n, C, h, w), which do not
    depend on the other rows. The backbone computes in `precision`. `change(image, rows)` is
    applied to each batch of images (B, 3, H, W) in 0..1, such as an augmentation; `about` names the
    change: the cache takes two changes with the same `about` for one.
    """

    model: FusionModel
    pixels: Pixels
    precision: str = "float32"
    stages: int | None = None
    change: Callable[[Tensor, np.ndarray], Tensor] | None = None
    about: tuple = ()

    def compute(self, rows: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Return the features of rows (n,).

        Runs on the model's device, in eval mode, and leaves the model in the mode that it was in.
        """
        blocks: list[np.ndarray] = []
        self.compute_blocks(rows, progress, blocks.append)
        return np.concatenate(blocks)

    def kept(self, rows: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Return the features of rows from the cache, as a mapped file, or compute them.

        Those that the cache has of other sets of images with the same pixels are not computed
        again. If the pixels have no file in the cache, the features are not kept there either.
        """
        file = self.file(rows)
        if file is None or not self.has_room(file, rows):
            return self.compute(rows, progress)
        width = [self.model.n_features] if self.stages is None else []
        if not self.depends_on_pixels_alone:
            return kept_array(
                file, len(rows), lambda append: self.compute_blocks(rows, progress, append), *width
            )
        width = [self.model.n_features + DIGEST]
        array = kept_array(
            file, len(rows), lambda append: self.gather(file, rows, progress, append), *width
        )
        return array[:, :-DIGEST].astype(np.float32, copy=False)

    @property
    def depends_on_pixels_alone(self) -> bool:
        """Whether equal pixels have equal features, wherever they stand among others.

        Of pixels that are decoded whenever they are read, it is not asked: to compare them takes
        as long as their features.
        """
        plain = self.change is None or self.about[:1] == (TURN,)
        return self.stages is None and plain and not isinstance(self.pixels, SourcePixels)

    def has_room(self, file: Path, rows: np.ndarray) -> bool:
        """Return whether features can be kept; where pixels have no room, others may have none."""
        if not isinstance(self.pixels, SourcePixels) or open_array(file) is not None:
            return True
        return has_room(len(rows) * self.compute(rows[:1]).nbytes)

    def gather(
        self, file: Path, rows: np.ndarray, progress: Progress | None, append: Append
    ) -> None:
        """Call `append` with the features of rows: those of other files first, then computed ones.

        Each row of a file ends with the digest of its pixels.
        """
        digests = digest_pixels(self.pixels, rows)
        known = find_known(file, digests, self.model.n_features)
        for block, places in known:
            append(block, places)
        missing = np.setdiff1d(np.arange(len(rows)), [p for _, places in known for p in places])
        if known and len(missing):
            n = len(rows) - len(missing)
            logger.info("features of %d of %d images are in the cache", n, len(rows))
        done = 0

        def append_with_digests(block: np.ndarray) -> None:
            nonlocal done
            places = missing[done : done + len(block)]
            append(np.concatenate([block, digests[places]], axis=1), places)
            done += len(block)

        if len(missing):
            self.compute_blocks(rows[missing], progress, append_with_digests)

    def compute_blocks(self, rows: np.ndarray, progress: Progress | None, append: Append) -> None:
        """Call `append` with the features of one batch of rows after the other."""
        model, fast = self.model, None
        device = next(model.parameters()).device
        size, precision = images_at_once(device), {"precision": self.precision}
        with torch.inference_mode(), in_eval_mode(model), autocast(self.precision, device):
            for start in range(0, len(rows), size):
                part = np.resize(rows[start : start + size], size)  # equal sizes give equal bits
                image = as_images(self.pixels[part], device)
                image = self.change(image, part) if self.change else image
                if self.stages is not None:
                    features = prefix_maps(model.backbone, image, self.stages).half()
                elif model.backbone is None:
                    features = model.features(image)
                else:
                    fast = fast or for_inference(model.backbone, image, **precision)
                    features = model.pool(fast(image)).float()
                append(features[: len(rows) - start].cpu().numpy())
                if progress:
                    progress(min(start + size, len(rows)), len(rows))

    def file(self, rows: np.ndarray) -> Path | None:
        """Return where the cache keeps the features of rows; None if the pixels are not in it."""
        source, backbone = getattr(self.pixels, "filename", None), self.model.backbone
        if source is None or backbone is None:
            return None
        device = next(self.model.parameters()).device
        precision = choose_precision(self.precision, device)
        made = (VERSION, self.pixels.shape[1:], precision, self.stages, self.about)
        made += (self.depends_on_pixels_alone,)  # then its rows end with digests
        made += computed_by(device)
        made += (self.model.pool_name if self.stages is None else "", backbone.mean, backbone.std)
        made += (backbone.arch_config and backbone.arch_config["made_by"],)
        digest = hashlib.sha256(repr((*made, *structure(backbone.body))).encode())
        for name, tensor in state_below(backbone, self.stages).items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        images = hashlib.sha256(Path(source).name.encode())
        images.update(np.ascontiguousarray(rows).tobytes())
        name = f"{digest.hexdigest()[:32]}-{images.hexdigest()[:16]}.npy"
        return cache_folder() / "features" / name


def digest_pixels(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a digest of the pixels of each row, as float32 (n, 4) whose bits they are."""
    digests = (hashlib.blake2b(pixels[row].data, digest_size=4 * DIGEST) for row in rows)
    joined = b"".join(digest.digest() for digest in digests)
    return np.frombuffer(joined, np.float32).reshape(-1, DIGEST)


def find_known(file: Path, digests: np.ndarray, width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return rows that other files of the same backbone have, with the places of their digests.

    `width` is how many features a row has before its digest.
    """
    wanted = {digest.tobytes(): place for place, digest in enumerate(digests)}
    found = []
    for other in sorted(file.parent.glob(f"{file.name.partition('-')[0]}-*.npy")):
        array = open_array(other) if wanted and other != file else None
        if array is None or array.shape[1:] != (width + DIGEST,) or array.dtype != np.float32:
            continue
        own = np.ascontiguousarray(array[:, -DIGEST:])
        rows = {digest.tobytes(): row for row, digest in enumerate(own)}
        here = [digest for digest in wanted if digest in rows]
        if here:
            places = np.array([wanted.pop(digest) for digest in here])
            found.append((np.array(array[[rows[digest] for digest in here]]), places))
    return found


class FeatureEngine:
    """Predicts as `TorchEngine` does, from features that the cache keeps.

    It is for a backbone that has not learned: the features of each view are those of all heads.
    """

    def __init__(self, model: FusionModel, *, views: int, precision: str) -> None:
        self.model, self.views, self.precision = model, views, precision

    def run(
        self, pixels: np.ndarray, rows: np.ndarray, *metadata: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the probabilities (n, k) with each of the `metadata` (n, width), and features.

        The images are the `rows` (n,) of pixels uint8 (N, size, size, 3).
        """
        views = [self.features(pixels, rows, view) for view in range(self.views)]
        shares = [np.mean([self.classify(x, table) for x in views], axis=0) for table in metadata]
        return shares, views[0]

    def features(self, pixels: np.ndarray, rows: np.ndarray, view: int) -> np.ndarray:
        """Return the features (n, F) of one view of images."""

        def change(image: Tensor, part: np.ndarray) -> Tensor:
            return turn(image, torch.full((len(image),), view))

        turned = {"change": change, "about": (TURN, view)} if view else {}
        source = Features(self.model, pixels, self.precision, **turned)
        with counting_bar(f"features of view {view + 1} of {self.views}") as progress:
            return source.kept(rows, progress)

    @torch.inference_mode()
    def classify(self, features: np.ndarray, metadata: np.ndarray) -> np.ndarray:
        """Return the probabilities (n, k) of features (n, F) and metadata (n, width)."""
        device = next(self.model.parameters()).device
        given = [torch.from_numpy(np.array(part)).to(device) for part in (features, metadata)]
        with in_eval_mode(self.model), autocast(self.precision, device):
            logits = self.model.classify(*given)
        return logits.float().softmax(dim=-1).cpu().numpy()


def computed_by(device: torch.device) -> tuple[str, ...]:
    """Return the versions, the processor and the batch size, on all of which last bits depend."""
    cuda = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if cuda else capabilities()
    versions = (torch.__version__, torchvision.__version__, timm.__version__)
    return (*versions, device.type, processor, str(images_at_once(device)))


@cache
def capabilities() -> str:
    """Return the instructions of this machine's CPU, and its sizes if PyTorch has them."""
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return repr((torch.backends.cpu.get_cpu_capability(), sorted(found.items())))


def structure(module: nn.Module) -> Iterator[str]:
    """Yield name, class and plain settings of each module in a module, without its weights."""

    def is_plain(value: object) -> bool:
        tuples = isinstance(value, tuple) and all(map(is_plain, value))
        return isinstance(value, PLAIN) or tuples

    for name, part in module.named_modules():
        settings = {k: v for k, v in vars(part).items() if k != "training" and is_plain(v)}
        yield f"{name} {type(part).__module__}.{type(part).__qualname__} {settings}"


def state_below(backbone: Backbone, stages: int | None) -> dict[str, Tensor]:
    """Return the weights and buffers of a backbone without those above its first `stages`."""

    def tensors(blocks: list[nn.Module]) -> set[int]:
        return {id(t) for block in blocks for t in (*block.parameters(), *block.buffers())}

    state = backbone.body.state_dict(keep_vars=True)
    if stages is None:
        return state
    above = tensors(blocks_below(backbone, len(backbone.blocks)))
    above -= tensors(blocks_below(backbone, stages))
    return {name: tensor for name, tensor in state.items() if id(tensor) not in above}


def fused_features(model: FusionModel, features: np.ndarray, metadata: np.ndarray) -> np.ndarray:
    """Return the inputs of the head (n, W), from image features (n, F) and metadata (n, M)."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        both = [torch.from_numpy(array).to(device) for array in (features, metadata)]
        return model.fuse(*both).float().cpu().numpy()


class _Reached(Exception):
    """Carries the feature maps out of a forward pass that need not go on."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps


def frozen_stages(backbone: Backbone) -> int:
    """Return how many stages, counted from the stem, have no parameter that learns."""
    for number, stage in enumerate(backbone.stages):
        if any(parameter.requires_grad for parameter in stage):
            return number
    return len(backbone.stages)


def blocks_below(backbone: Backbone, stages: int) -> list[nn.Module]:
    """Return the blocks of the first `stages` stages in forward order."""
    return [block for stage in backbone.blocks[:stages] for block in stage]


def prefix_maps(backbone: Backbone, image: Tensor, stages: int) -> Tensor:
    """Return the feature maps of the first `stages` stages for images (B, 3, H, W)."""

    def stop(block: nn.Module, given: tuple, maps: Tensor) -> None:
        raise _Reached(maps)

    hook = blocks_below(backbone, stages)[-1].register_forward_hook(stop)
    try:
        backbone.whole(image)
    except _Reached as reached:
        return reached.maps
    finally:
        hook.remove()
    raise AssertionError("a block that ran when the backbone was measured does not run now")


def resume_maps(backbone: Backbone, maps: Tensor, stages: int, size: int) -> Tensor:
    """Return the last feature map of images of `size` pixels, from their `prefix_maps`.

    The blocks of the prefix pass an empty picture on, and the last of them gives `maps`.
    """
    with standing_in(blocks_below(backbone, stages), maps):
        return backbone.whole(maps.new_zeros(1, 3, size, size))


@contextmanager
def standing_in(blocks: list[nn.Module], maps: Tensor) -> Iterator[None]:
    """Let blocks return their input, and the last of them `maps`."""
    *skipped, last = blocks
    try:
        for block in skipped:
            block.forward = lambda x, *rest, **named: x  # type: ignore[method-assign]
        last.forward = lambda *given, **named: maps  # type: ignore[method-assign]
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def can_be_cut(backbone: Backbone, stages: int, size: int) -> bool:
    """Return whether the two halves give what the whole backbone gives, tried on noise.

    They do not where something runs beside the blocks, such as a connection around a stage.
    """
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    image = image.to(backbone.shift.device)
    try:
        with torch.inference_mode(), in_eval_mode(backbone):
            whole = backbone.whole(image)
            halves = resume_maps(backbone, prefix_maps(backbone, image, stages), stages, size)
        return halves.shape == whole.shape and torch.allclose(halves, whole, atol=1e-4, rtol=1e-3)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False
