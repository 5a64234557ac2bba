"""The deployment that holds the model: the base, and the adapters of all tenants on it.

Knows versions, not aliases; what is asked of it at a time is put together to batches
(``batching.py``), and the adapters that were used last stay in memory (``residents.py``).
"""

import asyncio
import hashlib
import sys
import time
import uuid

import torch
import transformers

from raytag import storage
from raytag.errors import DataError, ModelError, RaytagError, SettingsError, StorageError
from raytag.model.adapter import CARD, WEIGHTS
from raytag.model.base import find_base
from raytag.model.mixed import MixedAdapter, MixedTagger
from raytag.model.packed import PackedModel
from raytag.model.tagger import Answer, Piece
from raytag.placement import hide_gpus_not_given
from raytag.registry.registry import Registry
from raytag.serve.batching import Batcher, BatchStats, DeadlineExceeded, NoTime, Overloaded
from raytag.serve.front import Refusal, Spans
from raytag.serve.ingress import log_lines
from raytag.serve.metrics import EngineMetrics
from raytag.serve.residents import Residents
from raytag.serve.settings import ServeSettings

CPU_TOKENS, GPU_TOKENS = 1024, 16384
"""A batch's tokens where the settings leave them to us."""
INLINE = 10_000
"""Characters that take too little time to tokenise for a thread of their own."""
SWITCH_SECONDS = 0.0005
"""The model's thread lets go of the interpreter after so long: who is refused waits for little."""
PROBE = "Tim Cook was in Seoul."
"""What a version must have read before it is used."""


class Engine:
    """One model, and what is asked of it."""

    def __init__(self, settings: ServeSettings) -> None:
        log_lines()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        hide_gpus_not_given()
        on_gpu = torch.cuda.is_available()
        torch.set_num_threads(settings.cpus)
        sys.setswitchinterval(SWITCH_SECONDS)
        self._registry = Registry(settings.registry)
        load_in = settings.load_in
        if load_in == "auto":
            load_in = "bf16" if on_gpu else "fp32"
        self._model = MixedTagger(
            PackedModel(
                find_base(settings.base, settings.revision),
                settings.head,
                targets=settings.targets,
                load_in=load_in,
                device=torch.device("cuda" if on_gpu else "cpu"),
            )
        )
        self._model.packed.fingerprint  # noqa: B018 - hashes the base once, before anyone waits
        self._residents: Residents[str, MixedAdapter] = Residents(
            self._read,
            lambda adapter: adapter.nbytes,
            settings.cache_megabytes << 20,
            group=_tenant,
        )
        self._batcher: Batcher[Piece, Answer] = Batcher(
            self._model.run,
            batch_tokens=settings.batch_tokens or (GPU_TOKENS if on_gpu else CPU_TOKENS),
            batch_seconds=settings.batch_seconds,
            queue_seconds=settings.queue_seconds,
            on_batch=self._note,
        )
        self._metrics = EngineMetrics(
            lambda: self._batcher.waiting_tokens, lambda: self._residents.stats
        )
        self._name = f"engine-{uuid.uuid4().hex[:8]}"

    async def extract(
        self, version: str, texts: list[str], seconds: float
    ) -> list[Spans] | Refusal:
        """The entities of each text by a version, within so many seconds."""
        until = time.monotonic() + seconds
        try:
            async with self._residents.use(version, until) as resident:
                return await self._asked(resident, texts, _tenant(version), until)
        except Overloaded as exc:
            overload = not isinstance(exc, NoTime)
            return Refusal(503, str(exc), exc.retry_after, overload=overload)
        except (DeadlineExceeded, TimeoutError) as exc:
            return Refusal(504, str(exc))
        except DataError as exc:
            return Refusal(422, str(exc))
        except (SettingsError, StorageError) as exc:
            # It may be there a moment later: published, or its store back.
            self._residents.drop(version)
            is_missing = isinstance(exc, SettingsError)
            return Refusal(404 if is_missing else 503, str(exc), None if is_missing else 1.0)
        except ModelError as exc:
            return Refusal(409, f"{version} cannot be used: {exc}")

    async def load(self, version: str) -> str | None:
        """Have a version ready; why it cannot be used, where it cannot.

        Raises what may pass: a store that is away.
        """
        try:
            async with self._residents.use(version) as resident:
                while True:
                    try:
                        await self._asked(resident, [PROBE], "", None)
                        return None
                    except Overloaded as exc:  # it is the model's word that counts here
                        await asyncio.sleep(min(1.0, exc.retry_after))
        except StorageError:
            self._residents.drop(version)
            raise
        except RaytagError as exc:
            return str(exc)

    async def snapshot(self) -> tuple[str, bytes]:
        """(this process's name, its metrics)."""
        return self._name, self._metrics.snapshot()

    async def _asked(
        self, resident: MixedAdapter, texts: list[str], tenant: str, until: float | None
    ) -> list[Spans]:
        if sum(map(len, texts)) > INLINE:
            prepared = await asyncio.to_thread(resident.prepare, texts)
        else:
            prepared = resident.prepare(texts)
        answers = await self._batcher.ask(
            prepared.pieces, [piece.tokens for piece in prepared.pieces], tenant, until
        )
        return [
            [(e.start, e.end, e.label, e.score or 0.0) for e in entities]
            for entities in prepared.entities(answers)
        ]

    def _read(self, version: str) -> MixedAdapter:
        """From the registry, its files checked against its record."""
        began = time.monotonic()
        record = self._registry.resolve(version)
        with storage.on_disk(record.uri) as folder:
            for name in (WEIGHTS, CARD):
                digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                if digest != record.files[name].sha256:
                    raise ModelError(f"its {name} is not what was published; publish it again")
            resident = self._model.read(folder)
        self._metrics.loaded(time.monotonic() - began)
        return resident

    def _note(self, batch: BatchStats) -> None:
        self._metrics.batch(batch.rows, batch.tokens, batch.padded - batch.tokens, batch.seconds)
        for seconds in batch.waits:
            self._metrics.waited(seconds)


def _tenant(version: str) -> str:
    return version.partition("/")[0]
