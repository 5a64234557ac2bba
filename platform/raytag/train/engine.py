"""One optimizer step over all workers: DeepSpeed around a model with an adapter.

Knows ZeRO stages, precision, clipping, and how to take the trained state out whole and put it
back whatever the number of workers. Does not know examples, heads or schedules: it is given
losses to sum and rates to use.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytag.model.lora import ParameterGroup, make_optimizer

# Weights are rounded to bf16 or kept, moments are always fp32: these are the tensors that a
# step reads and writes.
MOMENTS = ("exp_avg", "exp_avg_sq")

LossOfMicroBatch = Callable[[nn.Module], Tensor]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How the state of training lies over the workers."""

    zero: Literal[0, 1, 2, 3] = 2
    offload: bool = False
    """Keep moments and fp32 weights in the CPU's memory."""
    bf16: bool = False
    clip: float = 1.0
    """Largest gradient norm over all parameters; 0 does not clip."""

    def deepspeed_config(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.zero}
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.clip,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            # Our AdamW carries a rate per group; DeepSpeed's own CPU Adam would replace it and
            # has to be compiled first.
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": self.bf16},
            "steps_per_print": 2**31,
        }


@dataclass(frozen=True)
class TrainedState:
    """Everything a step reads and writes, whole, on the CPU, fp32.

    ``tensors`` maps ``weight/NAME``, ``exp_avg/NAME`` and ``exp_avg_sq/NAME`` to values;
    ``adam_step`` counts the optimizer's own steps.
    """

    tensors: Mapping[str, Tensor]
    adam_step: int

    @property
    def weights(self) -> dict[str, Tensor]:
        return {
            name.removeprefix("weight/"): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("weight/")
        }


class Engine:
    """A model under DeepSpeed, with torch.distributed already set up.

    The rates of ``groups`` are full rates; every step scales them. ``weights`` replace the
    trained parameters' values first.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParameterGroup],
        settings: EngineSettings,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        deepspeed = _import_deepspeed()
        self._deepspeed = deepspeed
        self._settings = settings
        self._rates = {group.name: group.lr for group in groups}
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if weights is not None:
            _check_names(self._parameters, weights)
            for name, value in weights.items():
                self._parameters[name].data.copy_(value)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(list(groups)),
            config=settings.deepspeed_config(),
            dist_init_required=False,
        )
        self.model: nn.Module = self._engine.module
        self._check_rates(1.0)

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def step(self, losses: Sequence[LossOfMicroBatch], scale: float) -> tuple[float, float | None]:
        """One step: this worker's micro-batch losses, all workers' gradients.

        A loss is already divided by the step's global count, so that the sum over workers and
        micro-batches is the mean the step descends. ``scale`` multiplies every group's rate.
        Returns (this worker's summed loss, the gradient's norm before clipping where ZeRO
        computed it).
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self._rates[group["name"]] * scale
        workers = dist.get_world_size()
        total = torch.zeros((), device=self.device)
        for i, loss_of in enumerate(losses):
            self._engine.set_gradient_accumulation_boundary(i == len(losses) - 1)
            loss = loss_of(self._engine)
            total += loss.detach()
            # DeepSpeed averages gradients over workers; the loss wants them summed.
            self._engine.backward(loss * workers)
        self._engine.step()
        self._check_rates(scale)
        norm = self._engine.get_global_grad_norm()
        return float(total), None if norm is None else float(norm)

    def state(self) -> TrainedState:
        """The whole state, gathered on every worker. All workers must call it together."""
        self._link_moments()
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"weight/{name}"] = self._whole(parameter, None)
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = self._whole(parameter, moment)
        return TrainedState(tensors, self._adam_step())

    def restore(self, state: TrainedState, loss_of: LossOfMicroBatch) -> None:
        """Put back the state another engine gave, of any stage and number of workers, on an
        engine made with ``state.weights``. All workers must call it together.

        ZeRO has nowhere to put moments before Adam's first step, so one is taken at rate 0 on a
        loss times 0, which moves nothing.
        """
        self.step([lambda model: loss_of(model) * 0.0], scale=0.0)
        self._link_moments()
        for name, parameter in self._parameters.items():
            self._put(parameter, None, state.tensors[f"weight/{name}"])
            for moment in MOMENTS:
                self._put(parameter, moment, state.tensors[f"{moment}/{name}"])
        for held in self._adam().state.values():
            held["step"].fill_(state.adam_step)

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters alone, whole, as :meth:`state` has them."""
        return {n: self._whole(p, None) for n, p in self._parameters.items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the model for inference. Training must not go on afterwards: the
        optimizer's own fp32 copy stays what it was."""
        _check_names(self._parameters, weights)
        for name, parameter in self._parameters.items():
            with self._gathered(parameter, write=True), torch.no_grad():
                if parameter.numel():
                    parameter.data.copy_(weights[name])

    def rates(self) -> dict[str, float]:
        """The rate each group used last, as the optimizer holds it."""
        return {g["name"]: float(g["lr"]) for g in self._engine.optimizer.param_groups}

    def close(self) -> None:
        self._engine.destroy()

    def _whole(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        if self._settings.zero == 0:
            held = parameter if moment is None else self._engine.optimizer.state[parameter][moment]
        else:
            from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

            held = (
                safe_get_full_fp32_param(parameter)
                if moment is None
                else safe_get_full_optimizer_state(parameter, moment)
            )
        whole: Tensor = held.detach().to("cpu", torch.float32, copy=True)
        return whole.reshape(self._shape(parameter))

    def _put(self, parameter: nn.Parameter, moment: str | None, value: Tensor) -> None:
        value = value.to(self.device)
        if self._settings.zero == 0:
            held = parameter.data if moment is None else self._adam().state[parameter][moment]
            held.copy_(value)
            return
        from deepspeed import utils

        if self._settings.zero == 3:
            # The setter for whole values forgets that the last worker's part may be padding.
            part = int(parameter.ds_tensor.numel())  # type: ignore[attr-defined]
            padded = nn.functional.pad(
                value.flatten(), (0, part * dist.get_world_size() - value.numel())
            )
            value = padded.narrow(0, part * dist.get_rank(), part)
            if moment is None:
                utils.safe_set_local_fp32_param(parameter, value)
            else:
                utils.safe_set_local_optimizer_state(parameter, value, moment)
        elif moment is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, moment)

    @staticmethod
    def _shape(parameter: nn.Parameter) -> torch.Size:
        return torch.Size(getattr(parameter, "ds_shape", parameter.shape))

    def _gathered(self, parameter: nn.Parameter, *, write: bool) -> Any:
        if self._settings.zero < 3:
            return nullcontext()
        return self._deepspeed.zero.GatheredParameters(
            [parameter], modifier_rank=0 if write else None
        )

    def _adam(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = (
            self._engine.optimizer if self._settings.zero == 0 else self._engine.optimizer.optimizer
        )
        return optimizer

    def _link_moments(self) -> None:
        """Let DeepSpeed find the moments of every group. Stages 1 and 2 look for all of them
        after the first group's first step, when the other groups have none yet."""
        if self._settings.zero in (1, 2):
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            zero = self._engine.optimizer
            for group, flat in zip(
                zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True
            ):
                lazy_init_hp_params_optimizer_state(group, flat, zero.optimizer.state)

    def _adam_step(self) -> int:
        return int(next(iter(self._adam().state.values()))["step"])

    def _check_rates(self, scale: float) -> None:
        """DeepSpeed regroups parameters; a group that came out with another's rate is fatal."""
        held = [(g["name"], g["lr"]) for g in self._engine.optimizer.param_groups]
        expected = [(name, lr * scale) for name, lr in self._rates.items()]
        if held != expected:
            raise RuntimeError(f"learning rates after the step are {held}, not {expected}")


def _check_names(parameters: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())[:3]
        raise RuntimeError(f"the saved state is of another model: {', '.join(odd)} …")


def _import_deepspeed() -> Any:
    """DeepSpeed without its start-up chatter and, on a CPU, without compiling anything."""
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # The shared-memory all-reduce is built by a C++ compiler at first use, half a minute
        # that gloo does not need; the list of what could be built is DeepSpeed's own switch.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed
