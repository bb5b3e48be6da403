"""Stand-in."""
import torch
from torch import nn
from lesionfast.models.backbones import create_backbone
from lesionfast.registry import Registry
fusions = Registry("fusion", "--fusion")
@fusions.register("concat")
def concat(): "Stub."
@fusions.register("film")
def film(): "Stub."
class FusionModel(nn.Module):
    def __init__(self, backbone, *, pool, n_metadata, n_classes, fusion, dropout):
        super().__init__(); self.backbone = backbone
        self.branch = nn.Sequential(nn.Linear(n_metadata, 32), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(backbone.num_features + 32, n_classes))
    def forward(self, image, metadata): return self.head(torch.cat([self.backbone(image).mean((2,3)), self.branch(metadata)], 1))
def build_model(config, n_metadata, n_classes):
    return FusionModel(create_backbone(config.arch, size=config.size, weights=config.weights), pool=config.pool, n_metadata=n_metadata, n_classes=n_classes, fusion=config.fusion, dropout=config.dropout)
def stage_groups(model):
    g = [[p for m in s for p in m.parameters()] for s in model.backbone.stages]
    return [*g, [*model.branch.parameters(), *model.head.parameters()]]
def load_model(run):
    from safetensors.torch import load_file
    from dataclasses import replace
    m = build_model(replace(run.config, weights="none"), run.model["n_metadata"], len(run.classes)); m.load_state_dict(load_file(run.path / "weights.safetensors")); return m.eval()
