"""What the workers of the engine tests run; started by test_engine.py, one process a worker."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForTokenClassification

from raytag.model.heads import IGNORED
from raytag.model.lora import add_adapter, parameter_groups
from raytag.model.settings import LoraPlusSettings, LoraSettings
from raytag.train.engine import Engine, EngineSettings, TrainedState
from raytag.train.plan import Plan, rate_at

STEPS = 20
EXAMPLES = 48
CLASSES = 5


def examples() -> list[tuple[Tensor, Tensor]]:
    """Ids and targets of different lengths, a third of the targets ignored."""
    rng = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(EXAMPLES):
        n = int(torch.randint(4, 20, (), generator=rng))
        ids = torch.randint(1, 200, (n,), generator=rng)
        targets = torch.randint(0, CLASSES, (n,), generator=rng)
        targets[torch.rand(n, generator=rng) < 0.3] = IGNORED
        rows.append((ids, targets))
    return rows


def tiny_model(dropout: float = 0.0) -> PeftModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=200,
        num_labels=CLASSES,
        classifier_dropout=0.0,
        pad_token_id=0,
    )
    model = LlamaForTokenClassification(config)
    return add_adapter(model, "tag", LoraSettings(rank=4, dropout=dropout))


def loss_of(rows: list[tuple[Tensor, Tensor]], count: int) -> Callable[[nn.Module], Tensor]:
    def loss(model: nn.Module) -> Tensor:
        used = rows or [(torch.ones(1, dtype=torch.int64), torch.full((1,), IGNORED))]
        ids = nn.utils.rnn.pad_sequence([r[0] for r in used], batch_first=True)
        targets = nn.utils.rnn.pad_sequence(
            [r[1] for r in used], batch_first=True, padding_value=IGNORED
        )
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(r[0]) for r in used], batch_first=True)
        logits = model(input_ids=ids, attention_mask=mask).logits
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total / count

    return loss


def run(
    zero: int,
    *,
    first: int = 0,
    last: int = STEPS,
    state: TrainedState | None = None,
    rates: LoraPlusSettings | None = None,
    **engine: Any,
) -> dict[str, Any]:
    """Train from step ``first`` to ``last``; the losses, rates and state that came out."""
    rows = examples()
    plan = Plan(lengths=[len(r[0]) for r in rows], batch_size=8, epochs=5, seed=3)
    model = tiny_model()
    groups = parameter_groups(model, rates or LoraPlusSettings(weight_decay=0.01))
    settings = EngineSettings(zero=zero, **engine)  # type: ignore[arg-type]
    made = Engine(model, groups, settings, state.weights if state else None)
    rank, workers = dist.get_rank(), dist.get_world_size()

    def step_losses(step: int) -> list[Callable[[nn.Module], Tensor]]:
        count = sum(int((rows[i][1] != IGNORED).sum()) for i in plan.batch(step))
        shares = plan.shares(step, workers, budget=40)[rank]
        return [loss_of([rows[i] for i in micro], count) for micro in shares]

    if state is not None:
        made.restore(state, step_losses(first)[0])
    losses, seen = [], []
    for step in range(first, last):
        scale = rate_at(step, STEPS, 0.1, "linear")
        loss, _ = made.step(step_losses(step), scale)
        total = torch.tensor(loss)
        dist.all_reduce(total)
        losses.append(float(total))
        seen.append({name: rate / scale for name, rate in made.rates().items()})
    result = {"losses": losses, "rates": seen, "state": made.state()}
    made.close()
    return result


def equal_gradients(zero: int) -> dict[str, float]:
    """How far A and B move in one step when every gradient is the same."""
    model = tiny_model()
    groups = parameter_groups(model, LoraPlusSettings(lr=1e-3, ratio=16))
    made = Engine(model, groups, EngineSettings(zero=zero, clip=0))  # type: ignore[arg-type]
    before = made.weights()

    def same_gradient(engine: nn.Module) -> Tensor:
        logits = engine(input_ids=torch.ones(1, 2, dtype=torch.int64)).logits
        # A backward pass that reaches every parameter; the values are put in by hooks below.
        return logits.sum()

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(torch.ones_like)
    made.step([same_gradient], 1.0)
    after = made.weights()
    made.close()
    moved: dict[str, list[float]] = {"lora_A": [], "lora_B": []}
    for name in before:
        for kind, values in moved.items():
            if f".{kind}." in name:
                values.append(float((after[name] - before[name]).abs().mean()))
    return {kind: sum(values) / len(values) for kind, values in moved.items()}


def cases(workers: int, folder: Path) -> dict[str, Any]:
    """Everything that is asked of one number of workers."""
    if workers == 1:
        results: dict[str, Any] = {f"zero{z}": run(z) for z in (0, 1, 2, 3)}
        results["half"] = run(0, last=STEPS // 2)
        results["half2"] = run(2, last=STEPS // 2)
        results["again"] = run(0, first=STEPS // 2, state=results["half"]["state"])
        results["again2"] = run(2, first=STEPS // 2, state=results["half2"]["state"])
        results["bf16"] = run(2, bf16=True)
        results["moves"] = {z: equal_gradients(z) for z in (0, 2)}
        return results
    results = {f"zero{z}": run(z) for z in (0, 1, 2, 3)}
    results["offload"] = run(2, offload=True)
    for z in (1, 2, 3):
        half = run(z, last=STEPS // 2)
        results[f"half{z}"] = half
        results[f"again{z}"] = run(z, first=STEPS // 2, state=half["state"])
    alone = torch.load(folder / "1.pt", weights_only=False)
    results["from_one"] = {
        z: run(z, first=STEPS // 2, state=alone["half"]["state"]) for z in (1, 2, 3)
    }
    results["moves"] = {z: equal_gradients(z) for z in (1, 2, 3)}
    return results


def from_two(folder: Path) -> dict[int, dict[str, Any]]:
    """One worker going on from what two saved."""
    two = torch.load(folder / "2.pt", weights_only=False)
    return {z: run(z, first=STEPS // 2, state=two[f"half{z}"]["state"]) for z in (1, 2, 3)}


def main() -> None:
    rank, workers, port, job, folder = sys.argv[1:]
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE=workers, LOCAL_RANK=rank
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(rank), world_size=int(workers))
    here = Path(folder)
    results = from_two(here) if job == "from_two" else cases(int(workers), here)
    if rank == "0":
        torch.save(results, here / f"{job}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
