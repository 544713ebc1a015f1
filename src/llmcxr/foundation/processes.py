"""The processes that tune one model together: one, or as many as `accelerate launch` or torchrun started.

Every process plans all batches and computes its share of each step; the recipe alone says what a step is. So the number of
processes changes the order of sums, and nothing else. The weights are copied to every process (DDP), or each process
holds a part of every weight (FSDP2, where Accelerate's configuration asks for it).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from llmcxr.foundation.devices import Use, asked_precision, core_count, pick_device, set_precision
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Precision

_PATIENCE = timedelta(days=30)  # how long processes wait for a stage that the main process runs alone


T = TypeVar("T")
N = TypeVar("N", bool, float)


def _asked(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


class Processes:
    """Rank, number and device of this process, and what all of them do together."""

    def __init__(self, device: str = "auto") -> None:
        """Joins the others where a launcher started several. `device` as for `pick_device`; with several, auto or cpu."""
        self.count, self.rank = 1, 0
        self._accelerator: Accelerator | None = None
        if "RANK" not in os.environ:  # no launcher
            self.device = pick_device(device)
            return
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device {device!r} is one device, but a launcher started several processes. Give auto.")
        if _asked("ACCELERATE_USE_DEEPSPEED"):
            raise UserError(
                "DeepSpeed is not supported; FSDP2 shards weights, gradients and moments as ZeRO-3 does. "
                "Launch with accelerate/fsdp2.yaml of the shipped recipes."
            )
        self._accelerator = Accelerator(cpu=device == "cpu")
        self.count, self.rank = self._accelerator.num_processes, self._accelerator.process_index
        self.device = self._accelerator.device
        # Waiting goes over the CPU, without the short time limit that finds a hang in the training itself.
        self._waiting = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_PATIENCE))

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files, prints, and runs what is not tuning."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every weight."""
        return self._accelerator is not None and _asked("ACCELERATE_USE_FSDP")

    @property
    def receives(self) -> bool:
        """Whether the weights that this process trains come from the main one (`prepare`): it needs the shapes only.

        Such a process builds its model on torch's meta device.
        """
        return self.sharded and not self.main

    # --- what all do together

    def from_main(self, value: N) -> N:
        """The main process's `value` (a flag or a number), on every process, once the main process gets here."""
        if self._accelerator is None:
            return value
        given = torch.tensor(float(value), dtype=torch.float64)
        dist.broadcast(given, 0, group=self._waiting)
        return type(value)(given.item())

    def on_main(self, function: Callable[[], None]) -> None:
        """Run `function` on the main process while the others wait. Where it fails, the others end as well (exit code 2)."""
        if self.main:
            try:
                with self._all_cores():
                    function()
            except BaseException:
                self.from_main(False)
                raise
        if not self.from_main(True):
            raise SystemExit(2)

    @contextmanager
    def _all_cores(self) -> Iterator[None]:
        """Processes that share the cores of a machine have a part of them each: while the others wait, one takes all."""
        own = torch.get_num_threads()
        if self.count > 1 and self.device.type == "cpu":
            torch.set_num_threads(max(own, core_count()))
        try:
            yield
        finally:
            if torch.get_num_threads() != own:
                torch.set_num_threads(own)

    def wait(self) -> None:
        """Return once every process has come here."""
        if self._accelerator is not None:
            dist.barrier(group=self._waiting)

    def fault(self, message: str) -> BaseException:
        """What to raise for a fault that all processes find: the main process says it, the others just end."""
        return UserError(message) if self.main else SystemExit(2)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def agree_on_precision(self, setting: Precision) -> dict[Use, torch.dtype]:
        """All compute in the recipe's precision, or (auto) in what the main process finds to be faster, which is returned."""
        choice = self.gather(asked_precision(setting, self.device))[0]
        set_precision(self.device, choice)
        return choice

    def gather(self, value: T) -> list[T]:
        """The `value` of every process, on every process, by rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value, group=self._waiting)
        return values

    # --- the model

    def prepare(self, module: nn.Module, layers: list[str], dtype: torch.dtype) -> nn.Module:
        """Move `module` to the device and join it to those of the other processes. Call it, not the one given.

        All begin with the main process's weights. `layers` are class names of the layers that are sharded one by one; `dtype`
        is the precision of the products.
        """
        gc.collect()  # models of earlier stages are held in circles only
        if self.sharded:
            self._shard(module, layers, dtype)
            return module
        module = module.to(self.device)
        if self._accelerator is None:
            return module
        # Buffers of language models never change. (Accelerate's own wrapping would keep the models of all stages.)
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(module, devices, broadcast_buffers=False)

    def _shard(self, module: nn.Module, layers: list[str], dtype: torch.dtype) -> None:
        plugin = FullyShardedDataParallelPlugin()  # what Accelerate's configuration says, from the environment
        faults = []
        if plugin.fsdp_version != 2:
            faults.append("fsdp_version should be 2")
        if plugin.cpu_ram_efficient_loading:
            faults.append("fsdp_cpu_ram_efficient_loading should be false")
        if _asked("FSDP_OFFLOAD_PARAMS"):
            faults.append("fsdp_offload_params should be false")
        if faults:
            raise self.fault(
                f"Accelerate's configuration: {'; '.join(faults)} (see accelerate/fsdp2.yaml of the shipped recipes)."
            )
        # Sharded before there are weights, so that no device holds more than its part and one weight of the main process.
        dtypes = {name: p.dtype for name, p in module.named_parameters()}
        values = dict(module.named_parameters()) if self.main else {}
        buffers = dict(module.named_buffers())
        _empty_parameters(module)
        options: dict[str, Any] = {
            "mesh": init_device_mesh(self.device.type, (self.count,)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        }
        for part in list(module.modules()):
            if type(part).__name__ in layers:
                fully_shard(part, reshard_after_forward=cast(bool, plugin.reshard_after_forward), **options)
        fully_shard(module, **options)
        module.to_empty(device=self.device)
        with torch.no_grad():
            for name, p in module.named_parameters():
                assert isinstance(p, DTensor)
                value = values.pop(name).detach() if self.main else torch.empty(p.shape, dtype=dtypes[name])
                p.copy_(distribute_tensor(value.to(self.device), p.device_mesh, p.placements))
            for name, buffer in module.named_buffers():
                if self.main:
                    buffer.copy_(buffers[name])
                dist.broadcast(buffer, 0)

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """Around forward and backward of one batch: gradients are shared with the `last` batch of a step.

        With FSDP2 they are shared with every batch: a whole gradient on each process is what it is there to avoid.
        """
        return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()

    def close(self) -> None:
        """Leave the others."""
        if self._accelerator is not None:
            dist.destroy_process_group()


def _empty_parameters(module: nn.Module) -> None:
    """Put a parameter without values, in float32 where it is trained, in the place of every one; ties stay.

    The float32 shards of what is trained become the masters; products are in another precision.
    """
    empty: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            if p not in empty:
                dtype = torch.float32 if p.requires_grad else p.dtype
                empty[p] = nn.Parameter(torch.empty_like(p, dtype=dtype, device="meta"), p.requires_grad)
            part._parameters[name] = empty[p]


def whole(tensor: Tensor) -> Tensor:
    """The tensor; where each process holds a part, all must call: the main one gets it whole, on the CPU, others get none."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0)


def parted_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole `value` in the parts in which the processes hold `target`."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
