"""Image encoders of the hubs by name: what builds them, their tokens, and where their weights are.

`hf-hub:owner/name` is a model of timm, `open_clip:NAME` the image tower of a CLIP,
`transformers:owner/name` a vision model of AutoModel. What builds one is plain JSON that a run
keeps in its model.json, so a saved run needs no hub. Code from a hub is never run.
"""

import inspect
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lesionfast.errors import LesionfastError, did_you_mean, import_extra
from lesionfast.files import check_shape, load_json
from lesionfast.models.weights import Conversion, Tensors, Wanted, find_config, timm_filters
from lesionfast.run import installed_version

logger = logging.getLogger("lesionfast")

PACKAGES = {"hf-hub": "timm", "open_clip": "open_clip_torch", "transformers": "transformers"}
NOT_OF_A_NETWORK = (  # arguments of timm's create_model that a hub's config does not decide
    *("num_classes", "img_size", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only"),
)
OF_TIMM = ("timm_wrapper", "timm_backbone")  # types of transformers that load what timm can load
BY_NAME = ("architecture", "model_args", "checkpoint_path", "backbone")  # settings that do so too
REMOTE = ("auto_map", "quantization_config", "implementation")  # settings that name foreign code
IN_MODEL_JSON: dict[str, dict[str, Any]] = {  # what `Encoder.config` looks like, by library
    "hf-hub": {"architecture": str, "args": {str: object}, "fixed": bool},
    "open_clip": {
        **{"embed_dim": int, "vision_cfg": {str: object}},
        **{"trunk": (str, None), "quick_gelu": bool},
    },
    "transformers": {"config": {str: object}},
}
Built = tuple["TokenBody", tuple[float, ...], tuple[float, ...]]  # the body, mean and std
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's own training images
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRANSFORMERS_CONFIGS = ("config.json", "preprocessor_config.json")
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")


class TokenBody(nn.Module):
    """A network up to its tokens, as a map of its patches (B, C, h, w).

    If it is `summarised`, the map is (B, 2 C, h, w): in every cell the network's own summary of the
    image comes first, which is its CLS token, or what its attention pooling gives. So the mean of
    the map is the summary beside the mean of the patches. `has_summary` says whether there is one,
    `patch` is the side of the patches in pixels where images must be a multiple of it.
    """

    has_summary = False
    patch: int | None = None

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.summarised = net, False
        self.patches = nn.Identity()  # where heat maps are taken from

    def join(self, patches: Tensor, summary: Tensor | None) -> Tensor:
        """Return the map of patch tokens (B, N, C) or of a map, and of the summary (B, C)."""
        grid = self.patches(as_grid(patches) if patches.ndim == 3 else patches)
        if not self.summarised or summary is None:
            return grid
        everywhere = summary[:, :, None, None].expand(-1, -1, *grid.shape[2:])
        return torch.cat([everywhere, grid], dim=1)


def first_side(sides: Any) -> int | None:
    """Return the height in a setting that is one number, a height and width, or neither."""
    first = sides[0] if isinstance(sides, list | tuple) and sides else sides
    return first if isinstance(first, int) else None


def as_grid(tokens: Tensor) -> Tensor:
    """Return tokens (B, N, C) as (B, C, h, w), square if N allows it."""
    side = math.isqrt(tokens.shape[1])
    shape = (side, side) if side**2 == tokens.shape[1] else (tokens.shape[1], 1)
    return tokens.mT.unflatten(2, shape)


class TimmBody(TokenBody):
    """A timm model up to its last feature map, whatever its family, as (B, C, h, w)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.prefix = getattr(net, "num_prefix_tokens", None) or 0
        first = self.prefix and getattr(net, "cls_token", None) is not None
        self.has_summary = bool(first) or getattr(net, "attn_pool", None) is not None
        if hasattr(net, "num_prefix_tokens"):
            self.patch = first_side(getattr(getattr(net, "patch_embed", None), "patch_size", None))

    def forward(self, image: Tensor) -> Tensor:
        """Return the feature map; tokens become a grid, channels-last becomes channels-first."""
        features = self.net.forward_features(image)
        if not isinstance(features, Tensor):
            raise TypeError(f"timm returns {len(features)} outputs for it, not one feature map")
        if features.ndim == 3:
            return self.join(features[:, self.prefix :], self.summarise(features))
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return self.join(features.movedim(-1, 1) if last else features, None)

    def summarise(self, tokens: Tensor) -> Tensor | None:
        """Return the summary (B, C) of all tokens (B, N, C)."""
        if not self.summarised:
            return None
        pooled = getattr(self.net, "attn_pool", None) is not None
        return self.net.pool(tokens) if pooled else tokens[:, 0]


class ClipBody(TokenBody):
    """The image tower of a CLIP in open_clip: a vision transformer or its own ResNet."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.tokens = hasattr(net, "transformer")
        if self.tokens:
            net.output_tokens, net.proj = True, None
            self.patch = first_side(net.patch_size)
            self.has_summary = net.pool_type in ("tok", "none")
        else:
            net.attnpool = nn.Identity()  # it is made for one size

    def forward(self, image: Tensor) -> Tensor:
        """Return the map of the patch tokens, or of the last stage."""
        if not self.tokens:
            return self.join(self.net(image), None)
        pooled, tokens = self.net(image)
        if self.net.pool_type == "none":
            pooled, tokens = tokens[:, 0], tokens[:, 1:]
        return self.join(tokens, pooled)


class TransformersBody(TokenBody):
    """A vision model of transformers; positions are interpolated where the model can do so."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__(net)
        can = "interpolate_pos_encoding" in inspect.signature(net.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if can else {}
        inner = getattr(net, "vision_model", net)  # where earlier versions have their parts
        self.prefix, self.pooled = 0, bool(getattr(inner, "use_head", False))
        with torch.no_grad():
            tokens = net.eval()(torch.zeros(1, 3, size, size), **self.options).last_hidden_state
        self.patch = first_side(getattr(net.config, "patch_size", None))
        if tokens.ndim == 3 and self.patch:
            self.prefix = max(0, tokens.shape[1] - (size // self.patch) ** 2)
        self.has_summary = self.prefix > 0 or self.pooled

    def forward(self, image: Tensor) -> Tensor:
        """Return the map of the patch tokens, or the last feature map."""
        outputs = self.net(image, **self.options)
        tokens = outputs.last_hidden_state
        if tokens.ndim == 4:
            return self.join(tokens, None)
        inner = getattr(self.net, "vision_model", self.net)
        if self.prefix and hasattr(inner, "post_layernorm"):  # CLIP's is for CLS alone
            tokens = inner.post_layernorm(tokens)
        summary = tokens[:, 0] if self.prefix else outputs.pooler_output
        return self.join(tokens[:, self.prefix :], summary if self.has_summary else None)


@dataclass(frozen=True)
class Encoder:
    """An encoder of a hub: the `library` and `name` of its --arch, and the JSON that builds it.

    `wanted` is where its pretrained weights are.
    """

    arch: str
    library: str
    config: dict[str, Any]
    wanted: Wanted

    @property
    def native(self) -> int:
        """The size in pixels that it was trained for."""
        return self.config["size"]

    def build(self, size: int) -> Built:
        """Return its network for square images of `size` pixels, with random weights, mean and std.

        Raises `LesionfastError` for a size that it can't take, and if it can't be built.
        """
        try:
            body = BUILDERS[self.library](self.config, size)
            return body, tuple(self.config["mean"]), tuple(self.config["std"])
        except LesionfastError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise LesionfastError(
                f"{self.arch} can't take images of {size} pixels ({reason}). "
                f"Type --size {self.native}."
            ) from None
        except (TypeError, KeyError, AttributeError) as error:
            library = f"{PACKAGES[self.library]} {installed_version(PACKAGES[self.library])}"
            raise LesionfastError(
                f"{self.arch} can't be built by {library}: {error}. Type another --arch, or "
                f"upgrade: pip install --upgrade {PACKAGES[self.library]}"
            ) from None

    def conversions(self, net: nn.Module) -> Iterator[Conversion]:
        """Yield the conversions of its weights to try; the last takes them as they are."""
        if self.library == "transformers":
            yield lambda tensors: convert_by_transformers(net, tensors)
        prefix = {"open_clip": "visual.", "transformers": "vision_model."}.get(self.library, "")
        if trunk := self.config.get("trunk") or self.config.get("architecture"):
            prefix += "trunk." if self.library == "open_clip" else ""
            for function in timm_filters(net, trunk):
                takes = "model" in inspect.signature(function).parameters
                more = {"model": net} if takes else {}
                yield lambda t, f=function, m=more: f(without(t, prefix), **m)
        if self.library == "open_clip" and not trunk:
            yield lambda tensors: fit_positions(net, without(tensors, prefix))
        yield lambda tensors: without(tensors, prefix)
        yield dict

    def describe(self) -> dict[str, Any]:
        """Return what model.json keeps of it: JSON that builds it without the hub."""
        package = PACKAGES[self.library]
        return {**self.config, "made_by": f"{package} {installed_version(package)}"}


def find_encoder(
    arch: str, library: str, name: str, saved: Mapping[str, Any] | None = None
) -> Encoder:
    """Return the encoder of a name; `saved` is what model.json keeps of it, else a hub has it.

    Raises `LesionfastError` if its package is not installed or its config can't be had or read.
    """
    require_package(arch, library)
    if saved is not None:
        check_saved(arch, library, saved)
        return Encoder(arch, library, dict(saved), Wanted(arch, name))
    try:
        return READERS[library](arch, name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{name} has no config that {PACKAGES[library]} can read ({error!r})"
        raise LesionfastError(f"--arch is '{arch}', but {problem}. Type another --arch.") from None


def check_saved(arch: str, library: str, saved: Mapping[str, Any]) -> None:
    """Raise `LesionfastError` unless what model.json keeps of an encoder has the right form."""
    shape = {"size": int, "mean": [float], "std": [float], **IN_MODEL_JSON[library]}
    try:
        check_shape(saved, shape, "arch_config")
        if not len(saved["mean"]) == len(saved["std"]) == 3:
            raise ValueError("mean and std are not of three colours")
    except ValueError as error:
        raise LesionfastError(
            f"{arch} can't be built by {PACKAGES[library]}: what model.json keeps of it is damaged "
            f"({error}). Copy its folder again."
        ) from None


def require_package(arch: str, library: str) -> None:
    """Raise `LesionfastError` unless the package of a library can be imported."""
    if library != "hf-hub":
        import_extra(library, library.replace("_", "-"), f"--arch {arch} can't be built")


def check_patch(arch: str, size: int, patch: int | None) -> None:
    """Raise `LesionfastError` for a size that is not a multiple of the patches of an encoder."""
    if patch and size % patch:
        below = size // patch * patch
        near = [f"--size {near}" for near in (below, below + patch) if near]
        raise LesionfastError(
            f"{arch} sees patches of {patch} pixels, and --size {size} is not a multiple of "
            f"{patch}. Type {' or '.join(near)}."
        )


def read_hub_json(wanted: Wanted, name: str) -> dict[str, Any]:
    """Return a JSON file of a repository, from the cache or the hub; empty if it has none.

    Raises `LesionfastError` if it lacks the first of those that are needed.
    """
    path = find_config(wanted, name)
    if path is None and name == wanted.configs[0]:
        where = wanted.folder or wanted.repository
        raise LesionfastError(
            f"--arch is '{wanted.arch}', but {where} has no {name}. Type another --arch, or copy "
            "the whole repository."
        )
    try:
        content = load_json(path) if path else {}
    except (OSError, ValueError) as error:
        raise LesionfastError(
            f"{path} can't be read: {error}. Delete it, and it is downloaded again."
        ) from None
    return content if isinstance(content, dict) else {}


def read_timm(arch: str, name: str) -> Encoder:
    """Return a model of timm on the hub, from its config.json."""
    wanted = Wanted(arch, name, repository=name, configs=("config.json",))
    given = read_hub_json(wanted, "config.json")
    if "architecture" not in given:
        raise LesionfastError(
            f"{name} is not a model of timm: its config.json names no architecture. If it is one "
            f"of transformers, type --arch transformers:{name}; of open_clip, --arch "
            f"open_clip:hf-hub:{name}"
        )
    about = {**given, **given.get("pretrained_cfg", {})}
    args = given.get("model_args") or {}
    if not timm.is_model(given["architecture"]):
        raise LesionfastError(
            f"{name} is a {given['architecture']}, which timm {timm.__version__} does not have. "
            "Upgrade it: pip install --upgrade timm"
        )
    config = {
        **{"architecture": given["architecture"], "args": args},
        **{"mean": list(about["mean"]), "std": list(about["std"])},
        **{"size": about["input_size"][-1], "fixed": bool(about.get("fixed_input_size"))},
    }
    return Encoder(arch, "hf-hub", config, wanted)


def build_timm(config: Mapping[str, Any], size: int) -> TokenBody:
    """Return a model of timm for a size."""
    name, args = config["architecture"], dict(config["args"])
    return TimmBody(create_timm(name, size, config["fixed"], args))


def create_timm(
    name: str, size: int, fixed: bool, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return a timm network without its classifier; one of a fixed size is built for `size`."""
    if not timm.is_model(name):
        raise TypeError(f"timm has no model {name!r}")
    args = {key: value for key, value in (args or {}).items() if key not in NOT_OF_A_NETWORK}
    of_size = {"img_size": size} if fixed else {}
    try:
        return timm.create_model(name, num_classes=0, **args, **of_size)
    except TypeError:  # its size is fixed, but not an argument
        return timm.create_model(name, num_classes=0, **args)


def read_open_clip(arch: str, name: str) -> Encoder:
    """Return the image tower of a CLIP: one of open_clip's own, or one on the hub."""
    repository = name.removeprefix("hf-hub:")
    if "/" in repository:
        of_clip = {"files": CLIP_FILES, "configs": ("open_clip_config.json",)}
        wanted = Wanted(arch, name, repository=repository, **of_clip)
        given = read_hub_json(wanted, "open_clip_config.json")
        about, model = given.get("preprocess_cfg", {}), given["model_cfg"]
    else:
        model, about, wanted = read_own_clip(arch, name)
    vision = dict(model["vision_cfg"])
    trunk, size = vision.get("timm_model_name"), first_side(vision.get("image_size")) or 224
    config = {
        **{"embed_dim": model["embed_dim"], "vision_cfg": vision, "trunk": trunk, "size": size},
        "quick_gelu": bool(about.get("quick_gelu", model.get("quick_gelu", False))),
        **{"mean": list(about.get("mean") or CLIP_MEAN), "std": list(about.get("std") or CLIP_STD)},
    }
    return Encoder(arch, "open_clip", config, wanted)


def read_own_clip(arch: str, name: str) -> tuple[dict[str, Any], dict[str, Any], Wanted]:
    """Return config, preprocessing and weights of a name such as ViT-B-16.laion2b_s34b_b88k."""
    import open_clip

    base, _, tag = name.partition(".")
    model = open_clip.get_model_config(base)
    if model is None:
        raise LesionfastError(
            f"--arch is '{arch}', but open_clip has no model '{base}'."
            f"{did_you_mean(base, open_clip.list_models())} Type one of open_clip.list_models(), "
            "or open_clip:hf-hub:OWNER/NAME for one on the hub."
        )
    tags = open_clip.list_pretrained_tags_by_model(base)
    if tag and tag not in tags:
        raise LesionfastError(
            f"--arch is '{arch}', but open_clip's {base} has no weights '{tag}'."
            f"{did_you_mean(tag, tags)} It has: {', '.join(tags) or 'none'}. Type one of them."
        )
    tag = tag or (tags[0] if len(tags) == 1 else "")
    about = open_clip.get_pretrained_cfg(base, tag) if tag else {}
    owner, repository, file = [*(about.get("hf_hub") or "").split("/", 2), "", "", ""][:3]
    return (
        model,
        about,
        Wanted(
            arch,
            name,
            url=about.get("url") or None,
            repository=f"{owner}/{repository}" if repository else None,
            files=(file, *CLIP_FILES) if file else CLIP_FILES,
            choose=None
            if tag
            else f"Type --arch open_clip:{base}.TAG with one of: {', '.join(tags)}",
        ),
    )


def build_clip(config: Mapping[str, Any], size: int) -> TokenBody:
    """Return the image tower of a CLIP for a size; its positions are those of that size."""
    from open_clip.model import _build_vision_tower

    vision = {**config["vision_cfg"], "image_size": size, "timm_model_pretrained": False}
    if config["trunk"] != vision.get("timm_model_name"):
        raise LesionfastError(
            f"what model.json keeps of a CLIP is damaged: its trunk is {config['trunk']!r}, but "
            f"its timm_model_name {vision.get('timm_model_name')!r}. Copy its folder again."
        )
    if config["trunk"]:
        fixed = timm.get_pretrained_cfg(config["trunk"]).fixed_input_size
        pool = {} if vision.get("timm_proj", "linear") else {"global_pool": vision["timm_pool"]}
        return TimmBody(create_timm(config["trunk"], size, fixed, pool))
    return ClipBody(_build_vision_tower(config["embed_dim"], vision, config["quick_gelu"]))


def fit_positions(net: nn.Module, tensors: Tensors) -> Tensors:
    """Return the tensors of a CLIP's vision transformer with positions for the net's own size."""
    from timm.layers import resample_abs_pos_embed

    name, own = "positional_embedding", net.positional_embedding
    if tensors[name].shape == own.shape:
        return tensors
    table = tensors[name].float()[None]
    resampled = resample_abs_pos_embed(table, list(net.grid_size), num_prefix_tokens=1)
    return {**tensors, name: resampled[0]}


def read_transformers(arch: str, name: str) -> Encoder:
    """Return a vision model of transformers, from its config.json and preprocessor_config.json."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    wanted = Wanted(arch, name, repository=name, configs=TRANSFORMERS_CONFIGS)
    given = read_hub_json(wanted, "config.json")
    kind = given.get("model_type")
    if "architecture" in given and kind in (None, "timm_wrapper"):
        raise LesionfastError(f"{name} is a model of timm. Type --arch hf-hub:{name}.")
    if kind not in CONFIG_MAPPING:
        raise LesionfastError(
            f"{name} is of the type '{kind}', which transformers "
            f"{installed_version('transformers')} does not have. Code from a hub is never run. "
            "Upgrade transformers, or type another --arch."
        )
    whole = parse_config(given)
    vision = getattr(whole, "vision_config", whole)
    if type(vision) not in MODEL_MAPPING or not hasattr(vision, "num_channels"):
        raise LesionfastError(
            f"{name} is a model of the type '{kind}', which is not an image encoder. "
            "Type another --arch."
        )
    config = {
        "config": json.loads(vision.to_json_string(use_diff=False)),
        "size": first_side(getattr(vision, "image_size", None)) or 224,
        **read_scale(wanted, kind),
    }
    return Encoder(arch, "transformers", config, wanted)


def read_scale(wanted: Wanted, kind: str) -> dict[str, list[float]]:
    """Return mean and std of an encoder's images, from its preprocessor_config.json."""
    given = read_hub_json(wanted, TRANSFORMERS_CONFIGS[1])
    if not given:
        logger.warning(
            "%s has no %s: its images are normalised as is usual for a model of the type '%s'",
            *(wanted.name, TRANSFORMERS_CONFIGS[1], kind),
        )
    if not given.get("do_normalize", True):
        return {"mean": [0.0] * 3, "std": [1.0] * 3}
    clip = kind.startswith("clip")
    mean = given.get("image_mean") or (CLIP_MEAN if clip else IMAGENET_MEAN)
    std = given.get("image_std") or (CLIP_STD if clip else IMAGENET_STD)
    return {"mean": list(mean), "std": list(std)}


def build_transformers(config: Mapping[str, Any], size: int) -> TokenBody:
    """Return a vision model of transformers."""
    from transformers import AutoModel

    about = parse_config(config["config"])
    with quiet("transformers"):
        net = AutoModel.from_config(about, trust_remote_code=False).float()
    return TransformersBody(net, size)


def parse_config(given: Mapping[str, Any]) -> Any:
    """Return the config of transformers for JSON from elsewhere.

    Raises `LesionfastError` if that would load a model by its name.
    """
    from transformers import CONFIG_MAPPING

    given = without_code(given)
    refuse_loaders(given)
    with quiet("transformers"):
        config = CONFIG_MAPPING[given["model_type"]].from_dict(given)
    refuse_loaders(config.to_dict())  # a type may have such a part by default
    return config


def refuse_loaders(config: Any) -> None:
    """Raise `LesionfastError` if any part of a config names a model or a file to load."""
    if isinstance(config, list | tuple):
        for part in config:
            refuse_loaders(part)
    if not isinstance(config, Mapping):
        return
    kind, named = config.get("model_type"), [name for name in BY_NAME if config.get(name)]
    if named or (isinstance(kind, str) and kind in OF_TIMM):
        what = f"{named[0]} = {config[named[0]]!r}" if named else f"the type '{kind}'"
        raise LesionfastError(
            f"the config of an encoder of transformers may not load another model or a file, but "
            f"it has {what}. Type another --arch; for a model of timm --arch hf-hub:OWNER/NAME."
        )
    for part in config.values():
        refuse_loaders(part)


def without_code(config: Any) -> Any:
    """Return a config without the settings that would load code, such as attention kernels."""
    if isinstance(config, list | tuple):
        return [without_code(part) for part in config]
    if not isinstance(config, Mapping):
        return config
    kept = {k: v for k, v in config.items() if not any(part in k for part in REMOTE)}
    return {name: without_code(value) for name, value in kept.items()}


def convert_by_transformers(net: nn.Module, tensors: Tensors) -> Tensors:
    """Return tensors under the names of the installed transformers, without what it lacks."""
    with quiet("transformers"):
        loaded, report = type(net).from_pretrained(
            None, config=net.config, state_dict=dict(tensors), output_loading_info=True
        )
    lost = {*report["missing_keys"], *report["mismatched_keys"]}
    return {name: t for name, t in loaded.state_dict().items() if name not in lost}


def rename_tensors(body: nn.Module, tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors of a saved model under the names of the installed transformers.

    They lie under `prefix`; those of any other library keep their names.
    """
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if not isinstance(body, TransformersBody) or own.keys() == body.net.state_dict().keys():
        return tensors
    others = {name: t for name, t in tensors.items() if not name.startswith(prefix)}
    renamed = convert_by_transformers(body.net, own)
    return others | {f"{prefix}{name}": t for name, t in renamed.items()}


def without(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors under a prefix, without it; all of them if none is."""
    below = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return below or dict(tensors)


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep transformers from reporting what it loads: our own errors say what is wrong."""
    if library != "transformers":
        yield
        return
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


READERS: dict[str, Callable[[str, str], Encoder]] = {
    "hf-hub": read_timm,
    "open_clip": read_open_clip,
    "transformers": read_transformers,
}
BUILDERS: dict[str, Callable[[Mapping[str, Any], int], TokenBody]] = {
    "hf-hub": build_timm,
    "open_clip": build_clip,
    "transformers": build_transformers,
}
