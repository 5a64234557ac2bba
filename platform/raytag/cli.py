"""The verbs, as ``raytag VERB …`` and as the scripts in jobs/: parse, build, run, say.

What all of them share: settings from YAML and flags, errors as one line, and the exit status.

0    done
1    a bug, with its traceback
2    a mistake of the user's, said in one line
130  stopped with Ctrl-C
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raytag import storage
from raytag.arguments import read_settings
from raytag.errors import RaytagError, SettingsError

if TYPE_CHECKING:
    from raytag.bulk.settings import TagSettings
    from raytag.model.settings import MergeSettings
    from raytag.train.evaluate import EvaluateSettings

Named = TypeVar("Named", "TagSettings", "EvaluateSettings", "MergeSettings")


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """``main``'s exit status, with the user's mistakes as one line on stderr."""
    # It warns of a missing optional kernel whenever peft imports it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except RaytagError as exc:
        print(f"error: {' '.join(str(exc).split())}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def finetune(arguments: Sequence[str]) -> int:
    """Fine-tune a base model on annotated text."""
    from raytag.train.settings import FinetuneSettings

    settings = read_settings(FinetuneSettings, arguments, "finetune.py")
    from raytag.report.terminal import print_report, print_tagged
    from raytag.train.finetune import finetune as train

    published = train(settings)
    if published is not None:
        print_report(published.report, sentences=0)
        print("\nheld-out sentences, as the adapter tags them:")
        print_tagged([example.text for example in published.test], published.predicted)
        print(f"adapter: {settings.output}/adapter")
        print(f"report:  {settings.output}/report/report.html")
    return 0


def finetune_fleet(arguments: Sequence[str]) -> int:
    """Train the adapters of many tenants and domains."""
    from raytag.train.fleet_settings import FleetSettings

    settings = read_settings(FleetSettings, arguments, "finetune_fleet.py")
    from raytag.train.fleet import train_fleet

    results = train_fleet(settings)
    failed = [result for result in results if result.state == "failed"]
    if failed:
        raise RaytagError(
            f"{len(failed)} of {len(results)} adapters failed, {failed[0].name} because: "
            f"{failed[0].reason}; the same command tries those again"
        )
    return 0


def sweep(arguments: Sequence[str]) -> int:
    """Compare ways of fine-tuning, each at its best rates."""
    from raytag.train.sweep_settings import SweepSettings

    settings = read_settings(SweepSettings, arguments, "sweep.py")
    from raytag.report.comparison_page import print_comparison
    from raytag.train.sweep import sweep as run_sweep

    swept = run_sweep(settings)
    if swept is None:
        return 0
    print_comparison(swept.comparison)
    print(f"report: {settings.output}/report.html")
    if swept.failed:
        name, failure = max(swept.failed.items(), key=lambda failed: failed[1].is_bug)
        said = f"{len(swept.failed)} of {swept.trials} trials failed, {name} because: "
        if failure.is_bug:
            raise RuntimeError(f"{said}{failure.reason}")
        raise RaytagError(f"{said}{failure.reason}; the same command tries those again")
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Score an adapter on annotated text."""
    from raytag.train.evaluate import EvaluateSettings
    from raytag.train.evaluate import evaluate as score

    settings = _located(read_settings(EvaluateSettings, arguments, "evaluate.py"), "adapter")
    from raytag.report.terminal import print_report

    print_report(score(settings))
    if settings.output:
        print(f"report: {settings.output}/report.html")
    return 0


def merge(arguments: Sequence[str]) -> int:
    """Make one model of an adapter and its base."""
    from raytag.model.settings import MergeSettings

    settings = _located(read_settings(MergeSettings, arguments, "merge.py"), "adapter")
    from raytag.cluster import check_output
    from raytag.model.merge import merge_adapter

    check_output(settings.output)
    merged = merge_adapter(settings)
    print(f"largest difference: {merged.difference:.1e} of the largest logit, in {merged.dtype}")
    if merged.f1:
        print(f"strict F1: {merged.f1[0]:.4f} as an adapter, {merged.f1[1]:.4f} merged")
    print(f"model: {settings.output}")
    return 0


def tag(arguments: Sequence[str]) -> int:
    """Tag a corpus, each document exactly once."""
    from raytag.bulk.settings import TagSettings

    settings = _located(read_settings(TagSettings, arguments, "tag.py"), "model")
    from raytag.bulk.tag import tag as tag_corpus
    from raytag.report.tagged import print_summary

    manifest = tag_corpus(settings)
    print_summary(manifest.labels, manifest.names)
    print(
        f"{manifest.documents_out:,} of {manifest.documents_in:,} documents tagged, "
        f"{manifest.documents_rejected:,} set aside"
    )
    print(f"tags: {settings.output}/data, as listed in {settings.output}/_manifest.json")
    return 0


def show(arguments: Sequence[str]) -> int:
    """Show tagged documents with their entities, here or as a page."""
    parser = argparse.ArgumentParser(prog="raytag show", description=show.__doc__)
    parser.add_argument("output", help="what a tagging job wrote, local or s3://")
    parser.add_argument("--limit", type=int, default=20, help="most documents to show")
    parser.add_argument("--label", action="append", help="only documents that hold such an entity")
    parser.add_argument("--whole", action="store_true", help="whole texts, however long")
    parser.add_argument("--html", type=Path, help="write a page to this file instead")
    given = parser.parse_args(arguments)
    from raytag.bulk.results import finished, read_documents
    from raytag.report.tagged import print_documents, render_tagged

    manifest = finished(given.output)
    wanted = set(given.label or ())
    unknown = sorted(wanted - manifest.labels.keys())
    if unknown:
        raise SettingsError(
            f"no entity of label {unknown[0]} was found; there are {', '.join(manifest.labels)}"
        )
    documents = (
        document
        for document in read_documents(given.output, manifest)
        if not wanted or wanted & {entity.label for entity in document.entities}
    )
    shown = list(islice(documents, given.limit))
    if given.html:
        page = render_tagged(
            shown, title=given.output, total=manifest.documents_out, whole=given.whole
        )
        storage.write_bytes(given.html, page.encode())
        print(f"page: {given.html}")
    else:
        print_documents(shown, whole=given.whole)
        print(f"{len(shown):,} of {manifest.documents_out:,} documents")
    return 0


def registry(arguments: Sequence[str]) -> int:
    """Keep adapters of many tenants: publish, list, promote, roll back."""
    from raytag.registry.verbs import main as do_verb

    return do_verb(arguments, registry.__doc__)


def keys(arguments: Sequence[str]) -> int:
    """Make, list and revoke the API keys of tenants."""
    from raytag.serve.key_verbs import main as do_verb

    return do_verb(arguments, keys.__doc__)


def serve(arguments: Sequence[str]) -> int:
    """Serve the adapters of all tenants over HTTP."""
    from raytag.serve.settings import ServeSettings

    settings = read_settings(ServeSettings, arguments, "serve.py")
    if "RAY_ADDRESS" not in os.environ:
        # On a laptop there is no cluster to submit to: one of its own, for as long as it serves.
        from raytag.local import main as run_beside_cluster

        return run_beside_cluster(["--", sys.executable, *sys.argv])
    from raytag.serve.app import run as serve_until_stopped

    serve_until_stopped(settings)
    return 0


VERBS = {
    verb.__name__: verb
    for verb in (
        *(finetune, finetune_fleet, sweep, evaluate, merge, tag, show),
        *(registry, keys, serve),
    )
}


def main() -> int:
    """``raytag VERB …``."""
    verbs = "".join(f"  {name:15} {verb.__doc__}\n" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="raytag",
        usage="raytag VERB …",
        description=f"verbs (each has its own --help):\n{verbs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS)
    verb = parser.parse_args(sys.argv[1:2]).verb
    return run(VERBS[verb], sys.argv[2:])


def _located(settings: Named, name: str) -> Named:
    """With its folder in the place of a ``tenant/domain@version``, which is said."""
    from raytag.registry.registry import located

    called, folder = located(getattr(settings, name), settings.registry)
    if called != folder:
        print(f"{name}: {called}")
    changed: Any = {name: folder}
    return replace(settings, **changed)
