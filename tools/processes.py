"""The processes of one training: one, or several of torchrun that share each batch.

`python -m tools.processes OPTIONS SCRIPT` is torchrun without its traceback, where a signal ends it
or one of its processes has told of an error.
"""

import os
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tools.cli import InputError


@dataclass
class Processes:
    """This process among those that torchrun started; without torchrun it is the only one. Rank 0
    alone prepares data, reports and saves."""

    rank: int
    count: int
    device: torch.device

    @staticmethod
    def join() -> "Processes":
        """Meets the others, over gloo on CPUs and nccl on GPUs, and picks this one's device."""
        gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if gpus else torch.device("cpu")
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Processes(0, 1, device)
        if gpus:
            if local >= gpus:
                raise InputError(f"--nproc_per_node: here are {gpus} GPUs; start as many processes")
            torch.cuda.set_device(device)
        # The others wait for rank 0 while it prepares the data, which may take hours.
        dist.init_process_group("nccl" if gpus else "gloo", timeout=timedelta(days=1))
        return Processes(dist.get_rank(), dist.get_world_size(), device)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def agree(self, values: list[float]) -> list[float]:
        """The largest of each value over all processes."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def rows(self, batch: int, parts: int = 1) -> slice:
        """This process's share of a batch, which it works in `parts`: every `count`-th row. Raises
        InputError where the shares or their parts would be unequal, as then the mean of their
        gradients is not the gradient of the mean."""
        if batch % (self.count * parts):
            raise InputError(f"--batch: {batch} does not divide by {self.count} processes"
                             + f" and --accumulate {parts}" * (parts > 1))
        return slice(self.rank, None, self.count)

    def parallel(self, stage: nn.Module, some_unused: bool) -> nn.Module:
        """The stage, wrapped so that gradients are averaged over all processes in `backward`. With
        `some_unused`, DDP looks in each step for parameters that it did not use: while only the
        spatial half learns, those of the temporal half."""
        if self.count == 1:
            return stage
        # Said once of convolutions whose weights are channels-last, and of no consequence here.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(stage, find_unused_parameters=some_unused)

    def leave(self) -> None:
        """Says goodbye to the others."""
        if self.count > 1:
            dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    """Starts the processes and waits for them; returns their exit status."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Else DDP warns of `some_unused` in each phase in which, after all, none is unused.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        run.main(argv)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status > 0 else 128 - status  # killed
    return 0


if __name__ == "__main__":
    sys.exit(main())
