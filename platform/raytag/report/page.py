"""A report → report.html, one file that needs nothing else.

No script, no picture, no font and no address outside the file; its own policy forbids them all.
The template decides how things look, this module what there is to see. Every word that comes
from data is escaped by the template engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from raytag.report.annotate import Piece, pieces, shortened
from raytag.report.charts import Chart, chart, number
from raytag.report.content import CurvePoint, Report, Resources, flattened
from raytag.report.mistakes import ErrorCase
from raytag.report.terminal import duration
from raytag.text.score import Confusion


@dataclass(frozen=True, slots=True)
class Mark:
    """A place on the scale from 0 to 1 under the headline."""

    kind: str
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its caption, and in words what it shows."""

    chart: Chart
    caption: str
    words: str


@dataclass(frozen=True, slots=True)
class ShownError:
    """A text the model got wrong, cut into pieces that can be marked."""

    case: ErrorCase
    pieces: Sequence[Piece]


# Half a surrogate pair has no place in a UTF-8 file, and HTML has none for control characters.
_UNFIT: Final = "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]"

Cell = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Matrix:
    """The confusions as cells: (count, share of its row).

    A row holds a cell for each label, then one for wrong boundaries and one for missed; the row
    of spurious predictions has labels only.
    """

    labels: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    spurious: Sequence[Cell]


def render_page(report: Report) -> str:
    """The text of report.html."""
    return render(
        "page.html.j2",
        report=report,
        marks=_marks(report),
        figures=_figures(report),
        diverged=sum(not math.isfinite(point.loss) for point in report.curve),
        evaluations=[point for point in report.curve if point.dev_f1 is not None],
        matrix=_matrix(report.confusions),
        errors=[_shown(case) for case in report.errors],
        checks=flattened(report.data.check),
        settings=flattened(report.settings),
        resources=_resources(report.resources),
        all_seconds=sum(report.resources.seconds.values()),
    )


def render(template: str, **values: Any) -> str:
    """A page from a template of this folder; what HTML cannot hold stands as U+FFFD."""
    environment = Environment(
        loader=PackageLoader("raytag", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=_score, duration=duration, amount=number, percent=_percent)
    page = environment.get_template(template).render(values)
    return re.sub(_UNFIT, "\N{REPLACEMENT CHARACTER}", page)


def _marks(report: Report) -> list[Mark]:
    """What stands on the scale, left out where it is not known."""
    if report.headline is None:
        return []
    split, scores = report.headline
    documents = report.test_documents
    known = [
        ("base", "Base before training", report.baseline),
        ("f1", f"{split.capitalize()} F1", scores.f1),
        ("documents", "F1 over documents", documents.f1 if documents else None),
        ("ceiling", "Ceiling of the head", report.ceiling.get(split)),
    ]
    return [Mark(kind, name, value) for kind, name, value in known if value is not None]


def _figures(report: Report) -> list[Figure]:
    """Loss, dev F1 and learning rates over the same steps, each where there are any."""
    curve = report.curve
    rates = report.learning_rates
    steps = [point.step for point in curve] + [step for row in rates.values() for step, _ in row]
    if not steps:
        return []
    reach = (0.0, float(max(steps)))
    scored = [(float(p.step), p.dev_f1) for p in curve if p.dev_f1 is not None]
    loss = [("loss", [(float(point.step), point.loss) for point in curve])]
    groups = [(name, [(float(step), rate) for step, rate in row]) for name, row in rates.items()]
    drawn = [
        (chart(loss, x_range=reach, y_range=(0, 0)), "Training loss", _loss_words(curve)),
        (chart([("dev F1", scored)], x_range=reach), "Dev F1", _dev_words(scored)),
        (chart(groups, x_range=reach, y_range=(0, 0)), "Learning rate", _rate_words(groups)),
    ]
    return [Figure(found, caption, words) for found, caption, words in drawn if found]


def _loss_words(curve: Sequence[CurvePoint]) -> str:
    if not curve:
        return ""
    first, last = curve[0], curve[-1]
    return f"{first.loss:.3f} at step {first.step}, {last.loss:.3f} at step {last.step}"


def _dev_words(scored: Sequence[tuple[float, float]]) -> str:
    if not scored:
        return ""
    step, best = max(scored, key=lambda point: point[1])
    return f"best {best:.3f} at step {step:.0f}, {scored[-1][1]:.3f} at the end"


def _rate_words(groups: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    peaks = [
        f"{name} up to {max(rates):.3g}"
        for name, row in groups
        if (rates := [rate for _, rate in row if math.isfinite(rate)])
    ]
    return ", ".join(peaks)


def _matrix(found: Confusion) -> Matrix | None:
    """Gold types in rows and what became of them; the last row is what no gold stands for."""
    predicted = {label for row in found.labels.values() for label in row}
    alone = set(found.boundary) | set(found.missed) | set(found.spurious)
    labels = sorted(set(found.labels) | predicted | alone)
    if not labels:
        return None
    rows = []
    for label in labels:
        row = found.labels.get(label, {})
        counts = [row.get(other, 0) for other in labels]
        counts += [found.boundary.get(label, 0), found.missed.get(label, 0)]
        rows.append((label, _shares(counts)))
    spurious = _shares([found.spurious.get(label, 0) for label in labels])
    return Matrix(labels, rows, spurious)


def _shares(counts: Sequence[int]) -> list[tuple[int, float]]:
    total = sum(counts) or 1
    return [(count, count / total) for count in counts]


def _shown(case: ErrorCase) -> ShownError:
    return ShownError(case, shortened(pieces(case.text, case.gold, case.predicted)))


def _resources(used: Resources) -> list[tuple[str, str]]:
    """What is known of it, in words."""
    rows = [("Workers", str(used.workers))]
    if used.device:
        rows.append(("Device", used.device))
    if used.zero_stage is not None:
        rows.append(("ZeRO stage", str(used.zero_stage)))
    if used.examples_per_second is not None:
        rows.append(("Training examples per second", f"{used.examples_per_second:.1f}"))
    if used.peak_memory_bytes is not None:
        rows.append(("Peak memory of a worker", _size(used.peak_memory_bytes)))
    return rows


def _score(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    """For a length in CSS: kept inside its track whatever the number."""
    return f"{100 * min(1.0, max(0.0, value)):.2f}%"


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
