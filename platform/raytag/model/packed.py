"""Several adapters on one frozen base, their rows mixed in one batch.

Knows which rows of a batch belong to which adapter, and keeps them apart: LoRA's products are
taken for runs of adapters at once (as in S-LoRA, Sheng et al. 2023, arXiv 2311.03285, section 5,
and mLoRA, Ye et al. 2023, arXiv 2312.02515, section 3), every adapter has its own output layer,
and what is dropped of a row depends on its own adapter's random state. So an adapter among others
computes what it would compute alone, up to the rounding of sums. Does not know optimizers, plans
or data; rows come as a head collates them, the rows of an adapter side by side.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, linear, pad
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D

from raytag.errors import ModelError
from raytag.model.adapter import (
    WEIGHTS,
    AdapterCard,
    Parent,
    begin_from,
    context,
    output_names,
    token_limit,
)
from raytag.model.base import Base, head_config, load_model, load_tokenizer
from raytag.model.dropout import MOST_SPARSE, dropped_places
from raytag.model.frozen import CONFIG, FrozenAdapter, read_config, read_tensors
from raytag.model.heads import Batch, Head
from raytag.model.heads.generate import GenerateHead
from raytag.model.heads.tag import TagHead
from raytag.model.heads.vocabulary import Vocabulary
from raytag.model.lora import add_adapter, linear_targets
from raytag.model.settings import HeadName, LoraSettings
from raytag.text.prompt import INSTRUCTION

_OUTPUTS = ("score", "classifier")
"""What transformers calls the output layer of token classification."""
_PREFIX = "base_model.model."
"""What peft puts before the base's own names."""


class RandomState:
    """Random numbers of its own: torch's default generator draws from it while it is entered."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._default = _default_generator(device)
        self._own = torch.Generator(device).manual_seed(seed).get_state()

    def __enter__(self) -> None:
        self._others = self._default.get_state()
        self._default.set_state(self._own)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._own = self._default.get_state()
        self._default.set_state(self._others)


class Adapter(nn.Module):
    """One adapter's tensors, all layers' in two: what an optimizer steps in two kernels.

    ``lora_A`` has shape (sum of in_features, rank), ``lora_B`` (sum of out_features, rank); the
    layers lie one after the other, A's transposed. ``modules_to_save`` is the output layer of a
    tag adapter. The names are peft's, so ``lora.parameter_groups`` knows them.
    """

    def __init__(
        self, outline: PeftModel, paths: Sequence[str], output: str | None, device: torch.device
    ) -> None:
        super().__init__()
        self.outline = [outline]  # in a list, lest it become a part of this module
        self._names = [f"{_PREFIX}{path}" for path in paths]
        config: Any = outline.peft_config["default"]
        self.rank, self.alpha, self.dropout = config.r, config.lora_alpha, config.lora_dropout
        given = {name: p for name, p in outline.named_parameters() if p.requires_grad}
        self._output = f"{_PREFIX}{output}.modules_to_save.default" if output else None
        expected = {f"{n}.lora_{kind}.default.weight" for n in self._names for kind in "AB"}
        if odd := {n for n in given if "modules_to_save" not in n} ^ expected:
            raise ModelError(
                f"the adapter has other targets than those it is packed with ({sorted(odd)[0]})"
            )
        a = torch.cat([given[f"{n}.lora_A.default.weight"].detach().T for n in self._names])
        b = torch.cat([given[f"{n}.lora_B.default.weight"].detach() for n in self._names])
        self._sizes = tuple(
            [given[f"{n}.lora_{kind}.default.weight"].shape[axis] for n in self._names]
            for kind, axis in (("A", 1), ("B", 0))
        )
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(b.to(device))
        self.modules_to_save: nn.Linear | None = None
        if self._output:
            made: Any = outline.get_submodule(self._output)
            self.modules_to_save = made.to(device).requires_grad_(True)

    @property
    def output(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the output layer; None where the base's own is used."""
        layer = self.modules_to_save
        return None if layer is None else (layer.weight, layer.bias)

    def frozen(self) -> "FrozenAdapter":
        """Its weights as they are now, as a forward pass without training reads them."""
        a = self.lora_A.detach().split_with_sizes(self._sizes[0])
        b = (self.lora_B.detach() * (self.alpha / self.rank)).split_with_sizes(self._sizes[1])
        return FrozenAdapter(tuple(part.T for part in a), b, self.output)

    def weights(self) -> dict[str, Tensor]:
        """Copies on the CPU, by the names that peft's model has them under."""
        named: dict[str, Tensor] = {}
        a = self.lora_A.detach().split_with_sizes(self._sizes[0])
        b = self.lora_B.detach().split_with_sizes(self._sizes[1])
        for name, of_a, of_b in zip(self._names, a, b, strict=True):
            named[f"{name}.lora_A.default.weight"] = of_a.T
            named[f"{name}.lora_B.default.weight"] = of_b
        if self.modules_to_save is not None:
            for name, value in self.modules_to_save.named_parameters():
                named[f"{self._output}.{name}"] = value.detach()
        return {name: value.to("cpu", copy=True).contiguous() for name, value in named.items()}

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Put back what :meth:`weights` gave."""
        self.lora_A.copy_(torch.cat([weights[f"{n}.lora_A.default.weight"].T for n in self._names]))
        self.lora_B.copy_(torch.cat([weights[f"{n}.lora_B.default.weight"] for n in self._names]))
        if self.modules_to_save is not None:
            for name, value in self.modules_to_save.named_parameters():
                value.copy_(weights[f"{self._output}.{name}"])


@dataclass(frozen=True)
class Share:
    """One adapter's rows in a batch: the next ``rows`` of them.

    ``width`` is how many columns they would have alone; ``random`` is what training drops by.
    """

    adapter: Adapter | FrozenAdapter
    rows: int
    width: int
    random: RandomState | None = None

    @property
    def trained(self) -> Adapter:
        """The adapter, of which training needs more than inference does."""
        assert isinstance(self.adapter, Adapter), "an adapter that was read is not trained"
        return self.adapter


class PackedModel:
    """A base loaded once for a head, to be asked with any of many adapters.

    ``targets`` are the layers to adapt, the same for all adapters; none means all linear ones of
    attention and MLP. In bf16 adapters are read, not trained: training keeps fp32. Raises
    ModelError for a base that cannot keep adapters apart.
    """

    def __init__(
        self,
        base: Base,
        head: HeadName,
        *,
        targets: Sequence[str] = (),
        load_in: Literal["fp32", "bf16"] = "fp32",
        device: torch.device | None = None,
    ) -> None:
        self.base, self.head = base, head
        self.device = device or torch.device("cpu")
        with RandomState(0, torch.device("cpu")):
            self.model = load_model(base, head, output_names(head, ("any",)), load_in, self.device)
        self.model.requires_grad_(False)
        self.limit = token_limit(self.model)
        self.tokenizer = load_tokenizer(base.path)
        self.targets = tuple(sorted(targets)) or linear_targets(self.model)
        self._mixture = _Mixture(self.device, left=head == "generate")
        self._output = self._output_path()
        self._output_shapes = self._shapes_of_output()
        self._takes = frozenset(inspect.signature(type(self.model).forward).parameters)
        self._sizes: list[tuple[int, int]] = []
        self._paths = self._install()

    @cached_property
    def fingerprint(self) -> str:
        """Of the base."""
        return self.base.fingerprint()

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)

    def make_head(self, labels: tuple[str, ...], instruction: str = INSTRUCTION) -> Head:
        """The head of an adapter; what is known of the tokenizer is shared by all."""
        if self.head == "tag":
            return TagHead(self.tokenizer, labels)
        return GenerateHead(
            self.tokenizer,
            labels,
            template=instruction,
            context=context(self.model),
            vocabulary=self._vocabulary,
        )

    def fresh(
        self,
        labels: tuple[str, ...],
        lora: LoraSettings,
        seed: int,
        parent: Parent | None = None,
    ) -> Adapter:
        """A new adapter, with the weights that a job of its own gives it for ``seed``, or those of
        a ``parent`` to begin from."""
        if lora.targets:
            self._check_targets(lora.targets)
        with RandomState(seed, torch.device("cpu")):
            outline = self._outline(output_names(self.head, labels))
            adapted = add_adapter(outline, self.head, lora)
        if parent is not None:
            begin_from(adapted, parent, labels)
        return Adapter(adapted, self._paths, self._output, self.device)

    def read(self, folder: Path) -> tuple[FrozenAdapter, AdapterCard]:
        """An adapter from its folder, for inference; may be called while the model is asked.

        Raises ModelError where it is none of this base's, of a kind that is not packed, or not
        whole.
        """
        card = AdapterCard.read(folder)
        if card.base_fingerprint != self.fingerprint or card.head != self.head:
            raise ModelError(
                f"the {card.head} adapter at {folder} was not trained on {self.base.name} with "
                f"the {self.head} head, and cannot be packed with those that were"
            )
        config = read_config(folder / CONFIG)
        self._check_targets(config.targets)
        shapes = self.shapes(config.rank, card)
        tensors = read_tensors(folder / WEIGHTS, shapes, self.device, self.model.dtype)
        layers = len(self._paths)
        a, b, output = tensors[:layers], tensors[layers : 2 * layers], tensors[2 * layers :]
        for factor in b:
            factor.mul_(config.alpha / config.rank)
        weight, bias = (*output, None, None)[:2]
        return FrozenAdapter(a, b, None if weight is None else (weight, bias)), card

    def _check_targets(self, targets: Sequence[str]) -> None:
        if tuple(sorted(targets)) != self.targets:
            raise ModelError(
                f"targets {', '.join(targets)}: only adapters of {', '.join(self.targets)} "
                "are packed together here"
            )

    def shapes(self, rank: int, card: AdapterCard) -> dict[str, tuple[int, ...]]:
        """What an adapter's file holds: all layers' A, all layers' B, the output layer."""
        names = [f"{_PREFIX}{path}" for path in self._paths]
        sizes = list(zip(names, self._sizes, strict=True))
        shapes: dict[str, tuple[int, ...]] = {}
        shapes |= {f"{n}.lora_A.weight": (rank, i) for n, (i, _) in sizes}
        shapes |= {f"{n}.lora_B.weight": (o, rank) for n, (_, o) in sizes}
        classes = len(output_names(card.head, card.labels))
        for name, shape in self._output_shapes.items():
            shapes[f"{_PREFIX}{self._output}.{name}"] = (classes, *shape[1:])
        return shapes

    def logits(self, batch: Batch, shares: Sequence[Share], keep: int = 0) -> list[Tensor]:
        """Each share's logits (rows, its own width, its own classes), from one forward pass.

        ``keep`` asks a generating model for its last columns only; it may give more. Rows are in
        the order of ``shares``, padded as the head does. Shares with a random state are trained;
        without, neighbours of equally many rows and equal rank take the least time.
        """
        training = shares[0].random is not None
        if self.model.training != training:
            self.model.train(training)
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        if self.head == "generate":
            positions = (batch.attention_mask.cumsum(dim=1) - 1).clamp_(min=0)
            known = {"position_ids": positions, "use_cache": False, "logits_to_keep": keep}
            inputs |= {name: value for name, value in known.items() if name in self._takes}
        guard = self._undisturbed() if training else torch.no_grad()
        with self._mixture.of(shares, batch.input_ids.shape[1], training), guard:
            logits = self.model(**inputs).logits
        split = logits.split_with_sizes([share.rows for share in shares])
        if self.head == "generate":
            return [part[:, -share.width :] for part, share in zip(split, shares, strict=True)]
        return [
            part[:, : share.width, : _classes(share)]
            for part, share in zip(split, shares, strict=True)
        ]

    def asking(self, *adapters: Adapter | FrozenAdapter) -> nn.Module:
        """The model as an adapter alone would make it, as heads and Tagger ask it.

        With several, one for each row of a batch, the rows of an adapter side by side.
        """
        return _Asking(self.model, self._mixture, adapters)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Refuse a base that draws random numbers no adapter is known for."""
        default = _default_generator(self.device)
        before = default.get_state()
        yield
        if not torch.equal(before, default.get_state()):
            raise ModelError(
                f"{self.base.name} drops values in a way of its own, which would let adapters that "
                "are trained together depend on each other; train them one at a time"
            )

    def _output_path(self) -> str | None:
        """Where the output layer is; checks that :meth:`fresh` begins it as loading does."""
        if self.head != "tag":
            return None
        found = [
            name for name in _OUTPUTS if isinstance(getattr(self.model, name, None), nn.Linear)
        ]
        if len(found) != 1:
            raise ModelError(f"{self.base.name} has no output layer known by name: {_OUTPUTS}")
        self._output = found[0]
        with RandomState(0, torch.device("cpu")):
            outline = self._outline(output_names("tag", ("any",)))
        begun: Any = outline.get_submodule(found[0])
        loaded: Any = self.model.get_submodule(found[0])
        # In bf16 nothing begins here, and other random numbers are drawn.
        trains = loaded.weight.dtype == torch.float32
        if trains and not torch.equal(begun.weight, loaded.weight.cpu()):
            raise ModelError(
                f"{self.base.name} brings an output layer of its own; adapters that start from it "
                "are trained one at a time"
            )
        return found[0]

    def _shapes_of_output(self) -> dict[str, tuple[int, ...]]:
        """Of the output layer's tensors, by name, as they are for some labels."""
        if self._output is None:
            return {}
        layer = self.model.get_submodule(self._output)
        return {name: tuple(p.shape) for name, p in layer.named_parameters()}

    def _outline(self, outputs: tuple[str, ...]) -> PreTrainedModel:
        """The base as peft knows it, holding no weights but those of a new output layer."""
        config = head_config(self.base, self.head, outputs)
        kind: Any = AutoModelForTokenClassification if self.head == "tag" else AutoModelForCausalLM
        with torch.device("meta"):
            model: PreTrainedModel = kind.from_config(config)
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                # On the CPU, where peft puts what it adds, but of one number in memory.
                shape = torch.empty(1).expand(parameter.shape)
                setattr(module, name, nn.Parameter(shape, requires_grad=False))
        if self.head == "tag":
            output: Any = model.get_submodule(str(self._output))
            for name, parameter in output.named_parameters():
                setattr(output, name, nn.Parameter(torch.empty(parameter.shape)))
            model._init_weights(output)
        return model

    def _install(self) -> list[str]:
        """Put the layers that tell adapters apart into the model; returns what is adapted."""
        paths: list[str] = []
        for path, module in list(self.model.named_modules()):
            parent, _, name = path.rpartition(".")
            holder = self.model.get_submodule(parent)
            if type(module) is nn.Dropout:
                setattr(holder, name, _PackedDropout(module.p, self._mixture))
            elif path == self._output:
                setattr(holder, name, _PackedOutput(self._mixture))
            elif name in self.targets:
                if not isinstance(module, nn.Linear | Conv1D):
                    raise ModelError(f"target {path} is not linear; only linear layers are packed")
                setattr(holder, name, _PackedLinear(module, self._mixture, len(paths)))
                paths.append(path)
                out_size, in_size = module.weight.shape
                if isinstance(module, Conv1D):
                    out_size, in_size = in_size, out_size
                self._sizes.append((in_size, out_size))
        if missing := set(self.targets) - {path.rpartition(".")[2] for path in paths}:
            raise ModelError(f"{self.base.name} has no layers {', '.join(sorted(missing))}")
        if _drops_attention(self.model):
            # The registries are transformers' own way to bring an attention along.
            name = f"packed-{id(self._mixture)}"
            AttentionInterface.register(name, self._mixture.attention)
            AttentionMaskInterface.register(name, sdpa_mask)
            self.model.set_attn_implementation(name)
        return paths


class _Mixture:
    """Which rows of the batch at hand are whose, and LoRA's weights for it; layers look here."""

    def __init__(self, device: torch.device, left: bool) -> None:
        self._device = device
        self._left = left
        self.shares: Sequence[Share] = ()
        self.training = False
        self.groups: list[_Group] = []
        self.a: Sequence[Tensor] = ()
        self.b: Sequence[Tensor] = ()
        self.frozen: list[FrozenAdapter] = []

    @contextmanager
    def of(self, shares: Sequence[Share], width: int, training: bool) -> Iterator[None]:
        """Set up for one forward pass, of rows with ``width`` columns."""
        self.shares, self.width, self.training = shares, width, training
        self.starts = [0, *accumulate(share.rows for share in shares)]
        if training:
            self._stack([share.trained for share in shares])
            alike: list[tuple[int, ...]] = [(share.rows,) for share in shares]
        else:
            self.frozen = [share.adapter.frozen() for share in shares]
            alike = [(s.rows, f.rank) for s, f in zip(shares, self.frozen, strict=True)]
        self.groups = [
            _Group(slice(run[0], run[-1] + 1), slice(self.starts[run[0]], self.starts[run[-1] + 1]))
            for _, indices in groupby(range(len(shares)), key=alike.__getitem__)
            for run in [list(indices)]
        ]
        try:
            yield
        finally:
            self.shares, self.groups, self.a, self.b, self.frozen = (), [], (), (), []

    def _stack(self, adapters: Sequence[Adapter]) -> None:
        """All layers' A and B in two tensors, into which gradients go."""
        rank = max(adapter.rank for adapter in adapters)
        # What dropout multiplies the kept values with goes here, which is where it ends up.
        scales = [a.alpha / a.rank / (1 - a.dropout) for a in adapters]
        a = torch.stack([_widened(adapter.lora_A, rank) for adapter in adapters])
        b = torch.stack([_widened(adapter.lora_B, rank) for adapter in adapters])
        b = b * torch.tensor(scales, device=self._device)[:, None, None]
        in_sizes, out_sizes = adapters[0]._sizes
        self.a, self.b = a.split_with_sizes(in_sizes, dim=1), b.split_with_sizes(out_sizes, dim=1)

    def add(self, out: Tensor, x: Tensor, layer: int) -> None:
        """``out += x @ A @ B``, adapter by adapter, in place, without a trace for gradients.

        A layer's factors are brought together when its turn comes, and used while they are near
        by; bringing all layers' together at once made LoRA's part of a pass take twice as long.
        """
        x = x.contiguous()
        for group in self.groups:
            members = self.frozen[group.shares]
            if len(members) == 1:
                a, b = members[0].a[layer][None], members[0].b[layer][None]
            else:
                a = torch.stack([member.a[layer] for member in members])
                b = torch.stack([member.b[layer] for member in members])
            product = torch.bmm(group.parted(x), a.transpose(1, 2))
            group.parted(out).baddbmm_(product, b.transpose(1, 2))

    def dropped(self, shape: torch.Size, rates: Sequence[float]) -> Tensor | None:
        """Places of a (rows, columns, features) tensor that each share's own stream drops."""
        self.check(shape)
        size = shape[2]
        found: list[Tensor] = []
        for start, share, rate in zip(self.starts, self.shares, rates, strict=False):
            if rate == 0 or share.random is None:
                continue
            alone = share.width * size
            with share.random:
                places = self._places(share.rows * alone, rate)
            # From where they are among the share's own rows to where those are in the batch.
            if (missing := self.width - share.width) != 0:
                places += torch.div(places, alone, rounding_mode="floor") * (missing * size)
                places += missing * size * self._left
            found.append(places.add_(start * self.width * size))
        return torch.cat(found) if found else None

    def check(self, shape: torch.Size) -> None:
        """Raises ModelError for values that are not (rows, columns, features) of the batch."""
        if len(shape) != 3 or shape[0] != self.starts[-1]:
            raise ModelError(
                f"this base makes values of shape {tuple(shape)} of {self.starts[-1]} rows, which "
                "cannot be told apart by adapter; use its adapters one at a time"
            )

    def _places(self, count: int, rate: float) -> Tensor:
        """What SparseDropout would drop of so many values in a row."""
        if self._device.type == "cpu" and rate <= MOST_SPARSE:
            return dropped_places(count, rate)
        return (dropout(torch.ones(count, device=self._device), rate) == 0).nonzero().flatten()

    def attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Transformers' sdpa; where it drops probabilities, share by share at its own width."""
        sdpa: Any = sdpa_attention_forward
        if dropout == 0:
            whole, _ = sdpa(module, query, key, value, attention_mask, dropout=0.0, **others)
            return whole, None
        parts: list[Tensor] = []
        for start, share in zip(self.starts, self.shares, strict=False):
            rows, missing = slice(start, start + share.rows), self.width - share.width
            before, after = (missing, 0) if self._left else (0, missing)
            own = slice(before, self.width - after)
            mask = attention_mask
            if mask is not None:
                mask = mask.expand(self.starts[-1], -1, -1, -1)[rows, :, own, own]
            q, k, v = (t[rows, :, own] for t in (query, key, value))
            assert share.random is not None
            with share.random:
                rate = dropout if share.trained.dropout else 0.0
                part, _ = sdpa(module, q, k, v, mask, dropout=rate, **others)
            parts.append(pad(part, (0, 0, 0, 0, before, after)))
        return torch.cat(parts), None


@dataclass(frozen=True)
class _Group:
    """Neighbouring shares of equally many rows: one batched product."""

    shares: slice
    rows: slice

    def parted(self, values: Tensor) -> Tensor:
        """Its rows of (rows, columns, features), as (shares, rows of a share * columns, ...)."""
        count = self.shares.stop - self.shares.start
        return values[self.rows].view(count, -1, values.shape[-1])


class _PackedLinear(nn.Module):
    """A frozen linear layer, and every adapter's A and B for it."""

    def __init__(self, base_layer: nn.Module, mixture: _Mixture, index: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._mixture = mixture
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        mixture = self._mixture
        mixture.check(x.shape)
        out: Tensor = self.base_layer(x)
        if not mixture.training:
            mixture.add(out, x, self._index)
            return out
        dropped = mixture.dropped(x.shape, [share.trained.dropout for share in mixture.shares])
        added: Tensor = _AddProducts.apply(  # type: ignore[no-untyped-call]
            out,
            x.contiguous(),
            mixture.a[self._index],
            mixture.b[self._index],
            dropped,
            mixture.groups,
        )
        return added


class _AddProducts(torch.autograd.Function):
    """``out += (x without what is dropped) @ A @ B``, adapter by adapter, in place.

    ``out`` and ``x`` have shape (rows, columns, features), ``a`` (adapters, in, rank) and ``b``
    (adapters, out, rank).
    """

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        dropped: Tensor | None,
        groups: Sequence[_Group],
    ) -> Tensor:
        kept = x if dropped is None else _without(x.clone(), dropped)
        products = []
        for group in groups:
            product = torch.bmm(group.parted(kept), a[group.shares])
            group.parted(out).baddbmm_(product, b[group.shares].transpose(1, 2))
            products.append(product)
        ctx.mark_dirty(out)
        ctx.groups = groups
        ctx.save_for_backward(kept, a, b, dropped, *products)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, a, b, dropped, *products = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_x = torch.empty_like(kept) if ctx.needs_input_grad[1] else None
        of_a, of_b = torch.empty_like(a), torch.empty_like(b)
        for group, product in zip(ctx.groups, products, strict=True):
            given = group.parted(gradient)
            of_product = torch.bmm(given, b[group.shares])
            torch.bmm(given.transpose(1, 2), product, out=of_b[group.shares])
            torch.bmm(group.parted(kept).transpose(1, 2), of_product, out=of_a[group.shares])
            if of_x is not None:
                torch.bmm(of_product, a[group.shares].transpose(1, 2), out=group.parted(of_x))
        if of_x is not None and dropped is not None:
            _without(of_x, dropped)
        return gradient, of_x, of_a, of_b, None, None


class _PackedDropout(nn.Dropout):
    """A dropout of the base's own; an adapter trained without dropout has none of this either."""

    def __init__(self, p: float, mixture: _Mixture) -> None:
        super().__init__(p)
        self._mixture = mixture

    def forward(self, input: Tensor) -> Tensor:
        if not self._mixture.training or self.p == 0:
            return input
        shares = self._mixture.shares
        rates = [self.p if share.trained.dropout else 0.0 for share in shares]
        dropped = self._mixture.dropped(input.shape, rates)
        if dropped is None:
            return input
        scales = [
            1 / (1 - rate) for s, rate in zip(shares, rates, strict=True) for _ in range(s.rows)
        ]
        kept = input * torch.tensor(scales, device=input.device)[:, None, None]
        return kept.view(-1).index_fill(0, dropped, 0.0).view_as(kept)


class _PackedOutput(nn.Module):
    """Every adapter's own output layer, on its own rows; few classes are filled up to the most."""

    def __init__(self, mixture: _Mixture) -> None:
        super().__init__()
        self._mixture = mixture

    def forward(self, hidden: Tensor) -> Tensor:
        shares = self._mixture.shares
        most = max(_classes(share) for share in shares)
        parts = []
        for part, share in zip(
            hidden.split_with_sizes([s.rows for s in shares]), shares, strict=True
        ):
            assert share.adapter.output is not None
            own = linear(part, *share.adapter.output)
            parts.append(pad(own, (0, most - own.shape[-1])) if own.shape[-1] < most else own)
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Asking(nn.Module):
    """The packed model with one adapter for all rows, or one for each."""

    def __init__(
        self,
        model: PreTrainedModel,
        mixture: _Mixture,
        adapters: Sequence[Adapter | FrozenAdapter],
    ) -> None:
        super().__init__()
        self.module = model
        self._mixture = mixture
        self._adapters = tuple(adapters)  # lest they become a part of this module
        self.training = model.training

    @torch.no_grad()
    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        rows, width = input_ids.shape
        adapters = self._adapters
        owners = adapters * rows if len(adapters) == 1 else adapters
        shares = [Share(adapter, len(list(own)), width) for adapter, own in groupby(owners)]
        with self._mixture.of(shares, width, training=False):
            return self.module(input_ids=input_ids, **inputs)


def _classes(share: Share) -> int:
    """Of its output layer; 0 where the base's own is used."""
    return share.adapter.output[0].shape[0] if share.adapter.output else 0


def _widened(factor: Tensor, rank: int) -> Tensor:
    """With columns of zeros up to ``rank``: they add nothing, and their gradient is zero."""
    return factor if factor.shape[1] == rank else pad(factor, (0, rank - factor.shape[1]))


def _without(values: Tensor, dropped: Tensor) -> Tensor:
    values.view(-1).index_fill_(0, dropped, 0.0)
    return values


def _drops_attention(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "attn_dropout")
    return any(getattr(config, name, 0.0) for name in names)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator
