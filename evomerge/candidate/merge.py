"""One recipe to a model directory, and its plan as a table before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.plan import Plan, Step, plan
from evomerge.candidate.views import views
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.candidate.stream import Candidate, Sources

Progress = Callable[[int, int], None]  # tensors done, of how many
Finish = Callable[["Candidate", "Sources"], "Candidate"]


def merge(
    recipe: Recipe, out: str | Path, *, device: str = "cpu", heal: Finish | None = None, progress: Progress | None = None
) -> Path:
    """Write the recipe's model to the directory `out`; `heal` finishes a recipe that asks for it."""
    from evomerge.candidate.save import refuse_existing, save
    from evomerge.candidate.stream import Sources, materialize

    if recipe.heal and heal is None:
        raise RecipeError("heal: this merge cannot heal; leave `heal` out, or merge through `evomerge merge`")
    refuse_existing(Path(out).absolute())
    sources = Sources(device=device)
    candidate = materialize(recipe, sources, hashed=False)
    if recipe.heal and heal:
        candidate = heal(candidate, sources)
    counted = _counted(candidate, progress) if progress else candidate
    home, files = sources.tokenizer(recipe)
    return save(counted, out, copy_from=home, files=files, card=card(recipe))


def dry_run(recipe: Recipe) -> Plan:
    """The plan of a recipe from the headers of its models: no tensor is read, and no torch loaded."""
    models = {"base": Checkpoint.open(recipe.base.location, "base")}
    models |= {name: Checkpoint.open(source.location, f"sources.{name}") for name, source in recipe.sources.items()}
    seen, _ = views(recipe, models)
    return plan(recipe, seen.pop("base"), seen)


def describe_plan(plan: Plan) -> str:
    """What each rule does to how many tensors, as a table."""
    rows = [("match", "method", "sources", "tensors", "parameters", "bytes")]
    groups: dict[tuple[str, str, str], list[Step]] = {}
    for step in plan.steps:
        groups.setdefault((step.rule.match if step.rule else "", step.method, ", ".join(step.sources)), []).append(step)
    rows += [(*group, *_sums(steps)) for group, steps in groups.items()]
    rows.append(("all", "", "", *_sums(plan.steps)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(_pad(cell, width, i > 2) for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows]
    return "\n".join([*(line.rstrip() for line in table), *(f"note: {warning}" for warning in plan.warnings)])


def _sums(steps: list[Step] | tuple[Step, ...]) -> tuple[str, str, str]:
    elements, size = sum(step.info.elements for step in steps), sum(step.info.bytes for step in steps)
    return f"{len(steps)}", f"{elements:,}", f"{size:,}"


def _pad(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def card(recipe: Recipe) -> str:
    """A short model card: what was merged, and the recipe that does it again."""
    sources = "\n".join(f"- {name}: `{source.location}`" for name, source in {"base": recipe.base, **recipe.sources}.items())
    return (
        "---\nlibrary_name: transformers\ntags:\n- merge\n- evomerge\n---\n\n"
        "# A merged model\n\nMade by evomerge from\n\n"
        f"{sources}\n\nwith this recipe; `evomerge merge` makes the same bytes of it again.\n\n```yaml\n{recipe.to_yaml()}```\n"
    )


@dataclass(frozen=True)
class _Counted:
    """A stream that reports how far it is."""

    candidate: Candidate
    progress: Progress

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        total = len(self.candidate.manifest)
        for done, item in enumerate(self.candidate.weights, 1):
            yield item
            self.progress(done, total)


def _counted(candidate: Candidate, progress: Progress) -> Candidate:
    from dataclasses import replace

    return replace(candidate, weights=_Counted(candidate, progress))
