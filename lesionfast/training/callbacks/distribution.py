"""One training by several processes: each has a share of every batch, all have the same weights.

What is learned is that of one process with the whole batch: order and augmentation are drawn for
the whole batch, and batch norm, the loss and the gradients are those of all shares. fastai's own
`distrib_ctx` is not used: its synchronised batch norm drops the activation of timm's layers, and it
wraps the model once, before stages are unfrozen.
"""

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from lesionfast.data.augment import Share
from lesionfast.training.callbacks.inference import Borrowing, InContext
from lesionfast.training.processes import gather, process

# Of torch 2.14 on, and before it: the buffers are the same in all processes, as batch norm's are.
BUFFERS = ("forward_sync_buffers", "broadcast_buffers")
TAKEN = next(name for name in BUFFERS if name in signature(DistributedDataParallel).parameters)
DATA_PARALLEL = {TAKEN: False, "find_unused_parameters": True}  # a user's module may have some


def distribution_callbacks() -> list[Callback]:
    """Return what a fit needs if several processes train together."""
    return [ShareData(), DataParallel()] if process.size > 1 else []


class ShareData(Borrowing):
    """Read a share of each training batch and of the validation, and pool what validation finds.

    No validation image counts twice, whatever the number of processes.
    """

    order, part = 49, "epoch"  # before fastai's Recorder reads the metrics

    def __init__(self) -> None:
        self.loaders: list[Any] = []

    def before_train(self) -> None:
        self.take("batches")

    def before_validate(self) -> None:
        self.take("rows")

    def take(self, of: str) -> None:
        """Let the loader in use read the share of this process."""
        self.dl.take(process.share(of))
        self.loaders.append(self.dl)

    def after_validate(self) -> None:
        """Put the sums and predictions of all processes together, in the order of the rows."""
        for metric in (self.recorder.loss, *self.recorder.metrics):
            for name in ("total", "count"):
                if hasattr(metric, name):
                    setattr(metric, name, sum(gather(getattr(metric, name))))
            for name in ("preds", "targs"):
                if hasattr(metric, name):
                    parts = gather(getattr(metric, name))
                    setattr(metric, name, [tensor for part in parts for tensor in part])

    def clean_up(self) -> None:
        for loader in self.loaders:
            loader.take(Share())
        self.loaders = []


class DataParallel(InContext):
    """Learn from the gradients of all processes (torch's DistributedDataParallel).

    The wrapped model is there for the forward pass alone, so that other callbacks see the model
    itself, and it is wrapped anew where other parameters learn.
    """

    order, part, run_valid = 57, "batch", False  # after autocast

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.learned = None, None

    def before_fit(self) -> None:
        self.learned = None

    def before_batch(self) -> None:
        """Put the wrapped model in the model's place."""
        learned = [parameter.requires_grad for parameter in self.model.parameters()]
        if learned != self.learned:
            self.parallel = DistributedDataParallel(self.model, **DATA_PARALLEL)
            self.learned = learned
        self.enter(WholeBatchNorm())
        self.whole, self.learn.model = self.model, self.parallel

    def after_pred(self) -> None:
        self.clean_up()

    def after_loss(self) -> None:
        """Weigh the loss by what of the batch's weight is here; the loss shown is that of all.

        A Ctrl-C that one process has seen counts for all.
        """
        interrupt = self.learn.stop_on_interrupt
        mass = self.mass(*self.yb)
        shared = torch.stack(
            [mass, mass * self.loss.detach(), mass.new_tensor(interrupt.interrupted)]
        )
        distributed.all_reduce(shared)
        total, weighted, interrupted = shared
        self.learn.loss_grad = self.loss_grad * (process.size * mass / total)
        self.learn.loss = weighted / total
        interrupt.agreed = bool(interrupted)

    def mass(self, target: Tensor) -> Tensor:
        """Return the sum of the class weights of targets (B,), by which a mean loss divides."""
        weight = getattr(self.loss_func, "weight", None)
        ones = torch.ones(len(target), device=target.device)
        return (ones if weight is None else weight[target].float()).sum()

    def clean_up(self) -> None:
        super().clean_up()
        if self.whole is not None:
            self.learn.model, self.whole = self.whole, None


class WholeBatchNorm(TorchFunctionMode):
    """Batch norm by the mean and variance of the whole batch, in whatever module it is.

    torch's SyncBatchNorm does the same, but on GPUs only, and not in modules of other libraries.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `batch_norm` and leave all else."""
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return torch's `batch_norm` of x (B, C, ...), of which each process has some rows."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, var, n = batch_moments(x)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * n / (n - 1)).to(running_var), momentum)
    return NormByAll.apply(x, weight, bias, mean, var, n, eps)


@torch.no_grad()
def batch_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,) and variance (C,) of the rows x (B, C, ...) of all processes, and how many.

    The parts are put together as by Chan et al. 1979 (Stanford CS-TR-79-773).
    """
    channels = x.shape[1]
    like = x.new_zeros(channels, dtype=torch.promote_types(x.dtype, torch.float32))
    mean, var = torch.batch_norm_update_stats(x, like, like.clone(), 0.0)  # as batch norm has them
    own = torch.cat([mean, var, like.new_full((1,), x.numel() / channels)])[None]
    table = like.new_empty(process.size, own.shape[1])
    distributed.all_gather_into_tensor(table, own)
    means, variances, counts = table.split([channels, channels, 1], dim=1)
    n = counts.sum()
    share = counts / n
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0), n


class NormByAll(Function):
    """Batch norm by given moments of the rows of all processes, which depend on these rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        n: Tensor,
        eps: float,
    ) -> Tensor:
        """Return x (B, C, ...) normalised, with torch's own kernel."""
        ctx.save_for_backward(x, weight, mean, var, n)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of these rows' loss; that of x holds what x does to other rows."""
        x, weight, mean, var, n = ctx.saved_tensors
        scale = (var + ctx.eps).rsqrt()
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, mean, scale, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([by_weight, by_bias])
        distributed.all_reduce(sums)
        slope, offset = -sums * scale / n * (1 if weight is None else weight)
        by_x += F.batch_norm(x, mean, var, slope, offset, False, 0.0, ctx.eps)
        of_weight, of_bias = ctx.needs_input_grad[1:3]
        return by_x, by_weight if of_weight else None, by_bias if of_bias else None, *[None] * 4
