"""Trainings that the platform does not offer, to measure its own by: for benchmarks/evidence.py.

`train_whole` moves every weight of the base, by the same head, batches, schedule and steps as an
adapter has. `train_spacy` is spaCy's own NER (hash embeddings, CNN, transitions), from scratch.
Both read the settings of a job; `lr` is the rate of the base, or of spaCy's Adam. The others are an
adapter's training from another beginning than A random and B zero.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from raytag.model.lora import ParameterGroup, grouped
from raytag.text.score import score
from raytag.text.spans import Entity, Example
from raytag.train.checkpoint import Progress
from raytag.train.trial import Steps, train_with
from raytag.train.worker import Phases, TrainJob, Worker

ADAPTER = "default"
"""peft's name of the only one there is."""


def train_whole(job: TrainJob, device: torch.device) -> Steps:
    """Full fine-tuning."""
    return train_with(_WholeModel(job, device, Phases(time.time())), job)


class _WholeModel(Worker):
    def adapted(self, model: PreTrainedModel) -> nn.Module:
        return model.requires_grad_(True)

    def groups(self) -> list[ParameterGroup]:
        told = self._job.settings
        rates = {"base": told.lr, "head": told.head_lr}
        return grouped(self._model, _kind, rates, told.weight_decay)


def _kind(name: str) -> str:
    """``head`` for what transformers calls the output layer of a token classifier."""
    return "head" if name.split(".")[0] in ("classifier", "score") else "base"


def train_from_gaussian(job: TrainJob, device: torch.device) -> Steps:
    """An adapter whose A begins as N(0, 1/rank^2), which is larger than A's usual beginning."""
    return _train_from(job, device, lambda layer: layer.reset_lora_parameters(ADAPTER, "gaussian"))


def train_from_b(job: TrainJob, device: torch.device) -> Steps:
    """An adapter whose B begins random and A zero (Hayou et al. 2024, arXiv 2406.08447)."""

    def begin(layer: LoraLayer) -> None:
        nn.init.zeros_(layer.lora_A[ADAPTER].weight)
        nn.init.kaiming_uniform_(layer.lora_B[ADAPTER].weight, a=math.sqrt(5))

    return _train_from(job, device, begin)


def train_from_pissa(job: TrainJob, device: torch.device) -> Steps:
    """An adapter that begins as the base's principal parts (Meng et al. 2024, arXiv 2404.02948)."""

    def begin(layer: LoraLayer) -> None:
        kept = layer.lora_A[ADAPTER].weight.dtype
        layer.pissa_init(ADAPTER, "pissa")
        for part in (layer.lora_A, layer.lora_B):
            part[ADAPTER].to(kept)

    return _train_from(job, device, begin)


def _train_from(job: TrainJob, device: torch.device, begin: Callable[[LoraLayer], None]) -> Steps:
    worker = _Begun(job, device, Phases(time.time()))
    worker.begin = begin
    return train_with(worker, job)


class _Begun(Worker):
    begin: Callable[[LoraLayer], None]
    """What is done to each adapted layer at first."""

    def adapted(self, model: PreTrainedModel) -> nn.Module:
        adapted = super().adapted(model)
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                self.begin(layer)
        return adapted


def train_spacy(job: TrainJob, device: torch.device) -> Steps:
    """spaCy's NER, on the CPU."""
    import spacy
    from spacy.training import Example as Annotated
    from spacy.util import fix_random_seed, minibatch

    told, progress = job.settings, Progress()
    fix_random_seed(told.seed)
    nlp = spacy.blank("en")
    nlp.add_pipe("ner")

    def annotated(example: Example) -> Annotated:
        spans = [(e.start, e.end, e.label) for e in example.entities]
        return Annotated.from_dict(nlp.make_doc(example.text), {"entities": spans})

    def found(examples: Sequence[Example]) -> list[list[Entity]]:
        return [
            [Entity(e.start_char, e.end_char, e.label_) for e in doc.ents]
            for doc in nlp.pipe([example.text for example in examples], batch_size=128)
        ]

    rows = [annotated(example) for example in job.data.train]
    optimizer = nlp.initialize(lambda: rows)
    optimizer.learn_rate = told.lr
    total = told.epochs * -(-len(rows) // told.batch_size)
    gold = [example.entities for example in job.data.dev]
    chance = random.Random(told.seed)
    begun, kept = time.monotonic(), b""
    while progress.step < total and not progress.stopped_early:
        chance.shuffle(rows)
        batches = list(minibatch(rows, size=told.batch_size))
        for turn, batch in enumerate(batches, start=1):
            losses = nlp.update(batch, drop=told.dropout, sgd=optimizer)
            progress.step += 1
            record: dict[str, Any] = {"step": progress.step, "loss": float(losses["ner"])}
            if turn == len(batches):
                record["dev_f1"] = score(gold, found(job.data.dev)).f1
                if progress.judge(record["dev_f1"], told.patience):
                    kept = nlp.to_bytes()
            yield _completed(record, progress, total, begun)
    nlp.from_bytes(kept)
    return found(job.data.test)


def _completed(
    record: Mapping[str, Any], progress: Progress, total: int, begun: float
) -> dict[str, Any]:
    """A step's record with what `Worker.train` has in it besides."""
    last = progress.stopped_early or progress.step == total
    return {
        **record,
        "seconds": time.monotonic() - begun,
        "total_steps": total,
        "last": last,
    }
