"""Encoders of the hubs: tiny ones of random weights, laid out in a cache as the hubs do."""

import json
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from lesionfast.config import TrainConfig
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_data
from lesionfast.errors import LesionfastError
from lesionfast.models import weights
from lesionfast.models.archs import find_arch
from lesionfast.models.backbones import create_backbone, native_size
from lesionfast.models.encoders import Encoder, find_encoder, without_code
from lesionfast.models.fusion import FusionModel, build_model, read_model
from lesionfast.serving.export import export
from lesionfast.serving.predictor import Predictor
from lesionfast.training.experiment import train
from lesionfast.training.learner import lesion_learner

SIDE = 32  # pixels that the tiny encoders were made for, in patches of 8
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 48, "image_size": SIDE, "patch_size": 8}
SCALE = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
VISION = {"layers": 4, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIDE}
TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
TIMM = {"embed_dim": 32, "depth": 4, "num_heads": 2, "patch_size": 8, "img_size": SIDE}


@pytest.fixture(autouse=True)
def hub(hub_caches, monkeypatch):
    """The cache of the hub, empty, and no hub to ask."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    return hub_caches / "hub"


def repository(hub, name="owner/tiny"):
    """Return the folder of the cache for a repository."""
    folder = hub / f"models--{name.replace('/', '--')}" / "snapshots" / "main"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_timm(folder):
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TIMM).eval()
    about = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "input_size": [3, SIDE, SIDE]}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": TIMM}
    config["pretrained_cfg"] = {**about, "fixed_input_size": True}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(net.state_dict(), folder / "model.safetensors")
    return net.forward_features


def write_clip(folder, **vision):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    vision_cfg = {**VISION, **vision}
    net = open_clip.CLIP(16, vision_cfg, TEXT).eval()
    model = {"embed_dim": 16, "vision_cfg": vision_cfg, "text_cfg": TEXT}
    scale = {"mean": SCALE["image_mean"], "std": SCALE["image_std"]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model, "preprocess_cfg": scale})
    )
    save_file(net.state_dict(), folder / "open_clip_model.safetensors")

    def tokens(image):
        visual = net.visual
        return visual.ln_post(visual.transformer(visual._embeds(image)))

    return tokens


def write_transformers(folder, kind):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    text |= {"intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config_class = transformers.CONFIG_MAPPING[kind]
    whole = kind in ("siglip", "clip")
    given = (
        {"vision_config": SMALL, "text_config": text}
        if whole
        else {**SMALL, **REGISTERS.get(kind, {})}
    )
    net = transformers.AutoModel.from_config(config_class(**given)).eval()
    net.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SCALE))
    net = getattr(net, "vision_model", net)
    last = net.post_layernorm if kind == "clip" else torch.nn.Identity()
    return lambda image: last(net(image).last_hidden_state)


CASES = {
    "hf-hub:owner/tiny": (write_timm, 1),
    "open_clip:hf-hub:owner/tiny": (write_clip, 1),
    "transformers:owner/tiny": (lambda folder: write_transformers(folder, "clip"), 1),
}
REGISTERS = {"dinov3_vit": {"num_register_tokens": 4}}
KINDS = {"vit": 1, "dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5, "siglip": 0}


def pooled(tokens, prefix):
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1)


@pytest.fixture(params=CASES)
def encoder(request, hub):
    """The name of an encoder in the cache, its own tokens of images, and how many are prefix."""
    write, prefix = CASES[request.param]
    return request.param, write(repository(hub)), prefix


@torch.no_grad()
def test_its_own_weights_and_normalisation_give_its_own_tokens(encoder):
    arch, tokens, prefix = encoder
    assert native_size(arch) == SIDE
    backbone = create_backbone(arch, size=SIDE, pool="auto").eval()
    image = torch.rand(2, 3, SIDE, SIDE)
    mean, std = (torch.tensor(SCALE[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    expected = pooled(tokens((image - mean) / std), prefix)
    torch.testing.assert_close(backbone(image).mean((2, 3)), expected, atol=1e-5, rtol=1e-4)
    assert backbone.pretrained and "local cache" in backbone.origin
    assert len(backbone.stages) >= 4


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_of_transformers_is_cut_at_its_patches(kind, hub):
    tokens = write_transformers(repository(hub), kind)
    backbone = create_backbone("transformers:owner/tiny", size=SIDE, pool="auto").eval()
    image = torch.rand(2, 3, SIDE, SIDE)
    mean, std = (torch.tensor(SCALE[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    own = tokens((image - mean) / std)
    found = backbone(image).mean((2, 3))
    torch.testing.assert_close(found[:, 32:], own[:, KINDS[kind] :].mean(1), atol=1e-5, rtol=1e-4)
    if kind != "siglip":  # whose summary is what its attention pooling gives
        torch.testing.assert_close(found[:, :32], own[:, 0], atol=1e-5, rtol=1e-4)


def test_a_resnet_of_clip_and_one_with_averaged_patches_have_no_cls_token(hub):
    write_clip(repository(hub, "owner/resnet"), layers=[1, 1, 1, 1], width=16)
    write_clip(repository(hub, "owner/average"), pool_type="avg")
    for name, channels in (("resnet", 512), ("average", 32)):
        backbone = create_backbone(f"open_clip:hf-hub:owner/{name}", size=64, pool="auto")
        assert (backbone.pool, backbone.num_features) == ("avg", channels)


@torch.no_grad()
def test_another_size_interpolates_the_positions(encoder):
    arch = encoder[0]
    small, large = (create_backbone(arch, size=size, pool="auto").eval() for size in (SIDE, 48))
    assert large(torch.rand(1, 3, 48, 48)).shape[2:] == (6, 6)
    flat = [net(torch.full((1, 3, size, size), 0.5)) for net, size in ((small, SIDE), (large, 48))]
    assert torch.corrcoef(torch.stack([each.mean((2, 3))[0] for each in flat]))[0, 1] > 0.9


def test_a_size_that_does_not_fit_the_patches_says_which_do(encoder):
    with pytest.raises(LesionfastError, match=r"patches of 8.*Type --size 40 or --size 48\.$"):
        create_backbone(encoder[0], size=44)


def test_a_saved_model_needs_no_hub(encoder, hub):
    arch = encoder[0]
    backbone = create_backbone(arch, size=48, pool="auto")
    about = json.loads(json.dumps(backbone.arch_config))
    for path in sorted(hub.rglob("*.*")):
        path.unlink() if path.is_file() else None
    how = {"size": 48, "weights": "none", "pool": "cls"}
    again = create_backbone(arch, **how, saved={"arch_config": about})
    assert again.state_dict().keys() == backbone.state_dict().keys()
    again.load_state_dict(backbone.state_dict())
    image = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(image), backbone.eval()(image))
    assert (again.mean, again.std) == (backbone.mean, backbone.std)
    with pytest.raises(LesionfastError, match="is not in the local cache"):
        create_backbone(arch, **how)


def test_offline_the_error_names_the_files_and_the_folder_that_are_looked_at(encoder, hub):
    arch, folder = encoder[0], repository(hub)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(LesionfastError, match="HF_HUB_OFFLINE is set") as raised:
        create_backbone(arch, size=SIDE)
    urls, place = re.search(
        r"Download (.*) on another machine and put them into the folder (\S+);",
        raised.value.message,
    ).groups()
    names = [url.rpartition("/")[2] for url in urls.split(" and ")]
    assert Path(place) == folder and names[-1].endswith(".safetensors")
    for name in names:
        (folder / name).write_bytes(kept[name])
    assert create_backbone(arch, size=SIDE).pretrained


def test_weights_that_are_missing_alone_are_said_to_be(encoder, hub):
    for path in repository(hub).glob("*.safetensors"):
        path.unlink()
    with pytest.raises(LesionfastError, match="no pretrained weights for.*put it into the folder"):
        create_backbone(encoder[0], size=SIDE)
    assert not create_backbone(encoder[0], size=SIDE, weights="none").pretrained


def test_a_folder_and_a_file_take_the_place_of_the_hub(encoder, hub, tmp_path):
    arch, folder = encoder[0], tmp_path / "copied"
    repository(hub).rename(folder)
    own = arch.replace("owner/tiny", str(folder)).replace(
        "hf-hub:/", "/" if "clip" in arch else "hf-hub:/"
    )
    found = create_backbone(own, size=SIDE)
    file = next(folder.glob("*.safetensors"))
    assert create_backbone(own, size=SIDE, weights=str(file)).pretrained
    assert found.pretrained
    file.unlink()
    with pytest.raises(LesionfastError, match=rf"{folder} has no .*safetensors"):
        create_backbone(own, size=SIDE)


def test_weights_of_another_network_do_not_fit(encoder, tmp_path):
    save_file({"embeddings.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(LesionfastError, match="do not fit"):
        create_backbone(encoder[0], size=SIDE, weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_a_saved_model_of_another_version_of_transformers_opens(kind, hub, tmp_path):
    """Versions of transformers name the parts of a network in other ways."""
    write_transformers(repository(hub), kind)
    config = TrainConfig(arch="transformers:owner/tiny", size=SIDE, fusion="none")
    model = build_model(config, 0, 3).eval()
    about = {name: getattr(config, name) for name in ("arch", "size", "fusion", "dropout")}
    about |= {"pool": "cls", "n_metadata": 0, "classes": list("abc")}
    about["arch_config"] = model.backbone.arch_config
    inside = "vision_model." if kind == "clip" else "vit."
    before, after = "backbone.body.net.", f"backbone.body.net.{inside}"
    tensors = {n.replace(before, after): t for n, t in model.state_dict().items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    again = read_model(about, tmp_path / "weights.safetensors", "")
    image = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))


def test_a_gated_model_says_where_its_terms_are_and_how_to_log_in(monkeypatch):
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def refuse(*args, **kwargs):
        raise GatedRepoError("403", response=httpx.Response(403, request=httpx.Request("GET", "x")))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr(weights, "require_answer", lambda url: None)
    with pytest.raises(LesionfastError, match="is gated.*/owner/gated, then type: hf auth login"):
        create_backbone("hf-hub:owner/gated", size=SIDE)


def test_code_from_the_hub_is_never_run(hub):
    pytest.importorskip("transformers", reason="transformers is not installed")
    folder = repository(hub)
    about = {"model_type": "mine", "auto_map": {"AutoModel": "code.Net", "AutoConfig": "code.C"}}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "code.py").write_text("raise SystemExit('code of the hub has run')")
    with pytest.raises(LesionfastError, match="of the type 'mine'.*Code from a hub is never run"):
        create_backbone("transformers:owner/tiny", size=SIDE)
    write_transformers(folder, "vit")
    foreign = {"attn_implementation": "owner/kernel", "_attn_implementation": "owner/kernel"}
    about = json.loads((folder / "config.json").read_text()) | {**foreign, "auto_map": {"A": "b.C"}}
    (folder / "config.json").write_text(json.dumps(about))
    backbone = create_backbone("transformers:owner/tiny", size=SIDE)
    assert "owner/kernel" not in json.dumps(backbone.arch_config)
    saved = {"config": {**backbone.arch_config["config"], **foreign}}
    again = create_backbone(
        "transformers:owner/tiny",
        size=SIDE,
        weights="none",
        saved={"arch_config": {**backbone.arch_config, **saved}},
    )
    assert again.body.net.config._attn_implementation != "owner/kernel"


def test_a_config_of_timm_loads_no_file_and_no_other_hub(hub):
    folder = repository(hub)
    write_timm(folder)
    about = json.loads((folder / "config.json").read_text())
    about["model_args"] |= {"checkpoint_path": "/no/such/file", "pretrained": True}
    (folder / "config.json").write_text(json.dumps(about))
    backbone = create_backbone("hf-hub:owner/tiny", size=SIDE)
    saved = backbone.arch_config | {"architecture": "hf-hub:owner/other"}
    for broken in (saved, {"architecture": "test_vit"}, {}):
        with pytest.raises(LesionfastError, match="can't be built by timm"):
            create_backbone("hf-hub:owner/tiny", size=SIDE, saved={"arch_config": broken})


OF_TIMM = {"model_type": "timm_wrapper", "architecture": "hf-hub:owner/other"}
LOADERS = {
    "a model of timm": OF_TIMM,
    "a file": {"model_type": "vit", "model_args": {"checkpoint_path": "/no/such/file"}},
    "a part of timm": {"model_type": "clip", "vision_config": OF_TIMM},
    "a part in a list": {"model_type": "vit", "parts": [{"model_type": "timm_backbone"}]},
    "a backbone": {"model_type": "detr", "backbone": "owner/other", "use_timm_backbone": False},
}


@pytest.mark.parametrize("given", LOADERS.values(), ids=LOADERS)
def test_a_config_of_transformers_loads_no_model_of_timm_and_no_file(hub, given, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    opened = []
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: opened.append(args))
    how = {"size": SIDE, "weights": "none"}
    saved = {"config": given, "size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(LesionfastError, match="may not load another model or a file, but it has"):
        create_backbone("transformers:owner/tiny", **how, saved={"arch_config": saved})
    (repository(hub) / "config.json").write_text(json.dumps(given))
    with pytest.raises(LesionfastError, match="may not load|is a model of timm"):
        create_backbone("transformers:owner/tiny", **how)
    assert not opened


def test_settings_that_name_code_are_left_out_of_lists_too():
    given = {"parts": [{"auto_map": {"A": "b.C"}, "width": 3}, 2]}
    assert without_code(given) == {"parts": [{"width": 3}, 2]}


def test_a_saved_clip_has_the_trunk_that_its_config_names(hub):
    write_clip(repository(hub))
    arch, how = "open_clip:hf-hub:owner/tiny", {"size": SIDE, "weights": "none"}
    about = create_backbone(arch, **how).arch_config
    vision = {**about["vision_cfg"], "timm_model_name": "hf-hub:owner/other"}
    for broken in ({"vision_cfg": vision}, {"trunk": "test_vit"}):
        with pytest.raises(LesionfastError, match="its trunk is .*Copy its folder again"):
            create_backbone(arch, **how, saved={"arch_config": about | broken})


def test_what_model_json_keeps_of_an_encoder_is_checked(hub, tmp_path, monkeypatch):
    write_timm(repository(hub))
    arch = "hf-hub:owner/tiny"
    about = create_backbone(arch, size=SIDE).arch_config
    lacking = {name: value for name, value in about.items() if name != "size"}
    folder = tmp_path / "auto"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    for damaged, message in [
        ([1], "is damaged: it is .*not an object"),
        ({"model": {"arch": arch, "arch_config": 3}}, "is damaged: .*arch_config.* is 3"),
        ({"model": {"arch": arch, "arch_config": lacking}}, "has no 'size'"),
        ({"model": {"arch": arch, "arch_config": about | {"mean": [0.5]}}}, "three colours"),
    ]:
        (folder / "model.json").write_text(json.dumps(damaged))
        with pytest.raises(LesionfastError, match=message):
            create_backbone(arch, size=SIDE, weights=str(folder))
        assert create_backbone(arch, size=SIDE).arch_config == about  # 'auto' is no folder


def test_what_is_no_image_encoder_says_so(hub):
    pytest.importorskip("transformers", reason="transformers is not installed")
    (repository(hub) / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(LesionfastError, match="type 'bert', which is not an image encoder"):
        create_backbone("transformers:owner/tiny", size=SIDE)
    with pytest.raises(LesionfastError, match="not a model of timm.*transformers:owner/tiny"):
        create_backbone("hf-hub:owner/tiny", size=SIDE)
    (repository(hub) / "config.json").write_text('{"architecture": "test_vit"}')
    with pytest.raises(LesionfastError, match="is a model of timm. Type --arch hf-hub:owner/tiny"):
        create_backbone("transformers:owner/tiny", size=SIDE)
    (repository(hub) / "config.json").write_text("[1")
    with pytest.raises(LesionfastError, match=r"config\.json can't be read.*Delete it"):
        create_backbone("hf-hub:owner/tiny", size=SIDE)


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_a_package_that_is_missing_says_what_to_install(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    extra = library.replace("_", "-")
    with pytest.raises(LesionfastError, match=rf"pip install 'lesionfast\[{extra}\]'"):
        create_backbone(f"{library}:owner/tiny", size=SIDE)


def test_names_of_open_clip_have_a_tag_where_there_are_several():
    pytest.importorskip("open_clip", reason="open_clip is not installed")

    def find(name) -> Encoder:
        return find_encoder(f"open_clip:{name}", *find_arch(f"open_clip:{name}"))

    found = find("ViT-B-16.laion2b_s34b_b88k")
    assert found.wanted.repository == "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    assert find("ViT-B-32.openai").config["quick_gelu"]
    assert find("ViT-B-16-SigLIP.webli").config["trunk"] == "vit_base_patch16_siglip_224"
    with pytest.raises(LesionfastError, match="several pretrained weights.*ViT-B-16.TAG.*openai"):
        create_backbone("open_clip:ViT-B-16", size=32)
    with pytest.raises(LesionfastError, match="Did you mean 'ViT-B-16'"):
        find("ViT-B16")
    with pytest.raises(LesionfastError, match="no weights 'openia'. Did you mean 'openai'"):
        find("ViT-B-16.openia")


def test_the_attention_pooling_of_a_trunk_of_timm_is_its_summary(hub):
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "image_size": 64}
    vision |= {"timm_pool": "map", "timm_proj": "none"}
    config = {"model_cfg": {"embed_dim": 768, "vision_cfg": vision, "text_cfg": TEXT}}
    (repository(hub) / "open_clip_config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        names = timm.create_model("vit_base_patch16_siglip_224", num_classes=0).state_dict()
    backbone = create_backbone("open_clip:hf-hub:owner/tiny", size=64, weights="none", pool="auto")
    assert backbone.body.net.state_dict().keys() == names.keys()
    assert (backbone.pool, backbone.num_features) == ("cls", 2 * 768)


def test_every_part_of_an_encoder_learns(encoder):
    backbone = create_backbone(encoder[0], size=SIDE, pool="auto")
    parts = {"pool": "cls", "fusion": "none", "dropout": 0.0}
    model = FusionModel(backbone, n_metadata=0, n_classes=3, **parts)
    model(torch.rand(2, 3, SIDE, SIDE)).logsumexp(1).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == [name for name in unused if "mask_token" in name]


def test_a_run_of_it_is_used_and_exported_without_the_hub(encoder, hub, tmp_path, caplog):
    caplog.set_level("INFO", "lesionfast")
    df = load_data()
    df = df.groupby(["target", "split"], group_keys=False).head(6)
    options = {"arch": encoder[0], "size": 48, "tta": 1, "head": "logistic"}
    run = train(df, out=tmp_path / "runs", **options)
    hub.rename(tmp_path / "gone")
    assert run.model["pool"] == "cls" and run.model["arch_config"]["made_by"]
    assert Predictor(run.path)(df["path"].iloc[0], age=55, sex="female")["decision"] in run.classes
    learn = lesion_learner(LesionDataLoaders.from_run(run, df), run)
    assert learn.model.pool_name == "cls"
    assert create_backbone(encoder[0], size=SIDE, weights=str(run.path), pool="cls").pretrained
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    folder = export(run, tmp_path / "model", onnx=True)
    assert create_backbone(encoder[0], size=SIDE, weights=str(folder), pool="cls").pretrained
    assert "match predictions.csv within" in caplog.text
    assert "ONNX differs from PyTorch by at most" in caplog.text
    assert Predictor(folder)(df["path"].iloc[0], age=55, sex="female")["decision"] in run.classes
