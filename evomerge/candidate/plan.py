"""What a merge needs for every output tensor, worked out before any tensor is read: mistakes stop here."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge import rope
from evomerge.candidate.checkpoint import FLOATS, Checkpoint, TensorInfo
from evomerge.candidate.layers import stacked_config
from evomerge.candidate.stack import Depths, Part, stack, stacked_tower
from evomerge.document import nearest
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import EITHER_WAY, WITHOUT_BASE, Cases, Curve, Knob, Recipe, Rule, Steps, dial_of

DTYPE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # of a recipe -> of safetensors
HEAD = "lm_head.weight"  # left out on disk where it is tied to the embedding
COMPUTED = "rotary_emb.inv_freq"  # a table that old checkpoints carry and every reader computes anew
SAME = ("model_type", "architectures", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
ALIKE = ("rope_theta", "rope_parameters", "rms_norm_eps")  # differing, these make a merge doubtful but not wrong
# What one number decides for all tensors of a rule at once
WHOLE_MODEL = {
    "density": ("ties", "variant paper trims over the whole model at once; give one number, or take variant mergekit"),
    "clip_norm": ("fedavg", "a model's whole delta is clipped at once; give one number"),
}
AVERAGES = ("linear", "multislerp", "karcher", "fedavg", "fisher", "regmean")  # divide by the sum of their weights
UNMERGED = ("F8", "C64")

Groups = tuple[float, ...]  # one number for each of equal groups of rows, or of columns where they are `Columns`


class Columns(Groups):
    """One number for each of equal groups of columns."""


@dataclass(frozen=True)
class Step:
    """How one output tensor is made; `rule` is None for a tensor of whole numbers, which is the base's."""

    name: str
    rule: Rule | None
    knobs: Mapping[str, Any]  # at this tensor's depth: Groups, {source: Groups}, bool or str
    info: TensorInfo  # of the output
    depth: float
    origins: Mapping[str, str] | None = None  # in a stack: the models that may be read, and the name of the tensor there
    scale: float = 1.0  # of the merged tensor
    columns: bool = False  # groups are of columns: the tensors are merged turned, and the result is turned back

    @property
    def method(self) -> str:
        return self.rule.method if self.rule else "copy"

    @property
    def sources(self) -> tuple[str, ...]:
        return self.rule.sources if self.rule else ()

    @property
    def base(self) -> str:
        """What deltas are taken from."""
        return self.rule.base if self.rule else "base"

    def origin(self, role: str) -> str | None:
        """The name of this tensor in a model; None where a slice does not use the model."""
        return self.name if self.origins is None else self.origins.get(role)


@dataclass(frozen=True)
class Plan:
    """Every output tensor in the order of its name, the config they go with, and what a reader should know."""

    steps: tuple[Step, ...]
    config: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def manifest(self) -> dict[str, TensorInfo]:
        return {step.name: step.info for step in self.steps}


def plan(recipe: Recipe, base: Checkpoint, sources: Mapping[str, Checkpoint]) -> Plan:
    """The plan of a merge. Raises CheckpointError where the models do not fit, RecipeError where the recipe does not."""
    doubts = [doubt for name, source in sources.items() for doubt in compare(name, source, base, stacked=bool(recipe.slices))]
    return resolve(recipe, base, doubts, sources)


def resolve(
    recipe: Recipe, base: Checkpoint, doubts: Iterable[str] = (), sources: Mapping[str, Checkpoint] | None = None
) -> Plan:
    """The plan for models that are known to fit: what is left to do for each further recipe over the same ones.

    `sources` are asked for by stacks of layers alone, whose tensors lie under other names there.
    """
    rules = recipe.all_rules
    for place, rule in rules.items():
        _check_whole(rule, place)
    parts = list(stack(recipe, {"base": base, **(sources or {})}, outputs) if recipe.slices else _unstacked(base))
    steps = tuple(_copied(part) if part.name in base.carried else _step(recipe, part) for part in parts)
    used = {id(step.rule) for step in steps} | _deciding(recipe, parts)
    idle = {place: rule for place, rule in rules.items() if id(rule) not in used}
    if not recipe.slices:  # which layers a stack has may be searched
        _refuse_dead_rules(idle, [*outputs(base), *[HEAD] * bool(base.config.get("tie_word_embeddings"))])
    shadowed = [f"{place}: {rule.match!r} is the first match of no tensor" for place, rule in idle.items()]
    copied = [
        f"{step.name}: whole numbers ({step.info.dtype}), copied from the base"
        for step in steps
        if step.rule is None and step.name not in base.carried
    ]
    if base.carried:
        copied.append(f"{len(base.carried)} tensors that a source has not ({min(base.carried)!r}, …) are the base's")
    _refuse_dead_cases(rules, steps)
    config = _config(recipe, base)
    if recipe.slices:
        tower = stacked_tower(recipe, base, outputs)
        config = stacked_config(config, recipe, {"base": base, **(sources or {})}, tower)
    return Plan(steps, config, (*doubts, *shadowed, *copied, *_narrowed(rules, steps)))


def _deciding(recipe: Recipe, parts: Iterable[Part]) -> set[int]:
    """The rules that a stack's other rules hide, but that say it is one: as there are some for what lies beside it."""
    if all(rule.stacked for rule in recipe.rules):
        return set()
    stacked = [part.name for part in parts if part.slice is not None]
    return {id(rule) for rule in recipe.rules if any(rule.matches(name) for name in stacked)}


def _unstacked(base: Checkpoint) -> Iterator[Part]:
    depths = Depths(base.tensors)
    for name in sorted(outputs(base)):
        yield Part(name, base.tensors[name], depths.of(name))


def outputs(base: Checkpoint) -> Iterator[str]:
    """The tensors of the merged model: the base's as they lie on disk, but for copies of another and computed tables."""
    for name in base.tensors:
        if not name.endswith(COMPUTED) and not (name.endswith(HEAD) and base.config.get("tie_word_embeddings")):
            yield name


def _copied(part: Part) -> Step:
    return Step(part.name, None, {}, part.info, part.depth, part.origins)


def _step(recipe: Recipe, part: Part) -> Step:
    name, info = part.name, part.info
    if info.dtype.startswith(UNMERGED):
        raise CheckpointError(f"base: {name!r} is {info.dtype}, too coarse to be merged; take the model in BF16, F16 or F32")
    if info.dtype not in FLOATS:
        return _copied(part)
    place, rule, depth = _rule_of(recipe, part)
    step = Step(name, rule, {}, info, depth, part.origins)
    knobs = {knob: _at(value, depth, f"{place}.{knob}", step) for knob, value in rule.knobs.items()}
    if rule.method in AVERAGES and knobs.get("normalize", True):
        _check_sum(knobs["weight"], place, name)
    written = TensorInfo(DTYPE_NAMES[recipe.dtype] if recipe.dtype else info.dtype, info.shape)
    return replace(step, knobs=knobs, info=written, scale=part.scale, columns=_columns(knobs, place, name))


def _rule_of(recipe: Recipe, part: Part) -> tuple[str, Rule, float]:
    """The first rule that matches, its place, and the depth it is taken at: a slice's own rules run over the slice."""
    inner = recipe.slices[part.slice].rules if part.slice is not None else ()
    tried = [
        *((f"slices[{part.slice}].rules[{j}]", rule, part.inner) for j, rule in enumerate(inner)),
        *((f"rules[{i}]", rule, part.depth) for i, rule in enumerate(recipe.rules)),
    ]
    found = next((each for each in tried if each[1].matches(part.name)), None)
    if found is None:
        raise RecipeError(f'rules: none matches {part.name!r}; end the list with a rule that takes the rest (match: "*")')
    if part.origins is not None:
        _check_models(part, *found[:2])
    return found


def _check_models(part: Part, place: str, rule: Rule) -> None:
    """A rule in a slice reads only models that give layers to it."""
    assert part.origins is not None
    needed = rule.sources if rule.knobs.get("between") == "models" or rule.method in WITHOUT_BASE else (rule.base, *rule.sources)
    if missing := [role for role in needed if role not in part.origins]:
        who, here = missing[0], f"slices[{part.slice}]"
        why = "it has none; give the tensor a rule without it"
        if part.slice is not None:
            why = f"{here} takes no layers from it; add {who!r} to its `layers`, or give the slice a rule of its own"
        raise RecipeError(f"{place}: {rule.method} reads {who!r} for {part.name!r}, and {why}")


def _at(knob: Knob, depth: float, place: str, step: Step, role: str = "") -> Any:
    """A knob at a tensor. What is a source's own looks at the name that the tensor has there, as in mergekit."""
    if isinstance(knob, Mapping):
        return {source: _at(curve, depth, f"{place}.{source}", step, source) for source, curve in knob.items()}
    if isinstance(knob, Cases):
        name = (step.origin(role) if role else None) or step.name
        value = knob.of(name)
        if value is None:
            raise RecipeError(f"{place}: no case matches {name!r}; end the list with what holds for the rest, as {{value: 0.5}}")
        return _at(value, depth, place, step)
    if isinstance(knob, Steps):
        return _at(knob.at(depth), depth, place, step)
    if not isinstance(knob, Curve):
        return knob
    groups = knob.at(depth)
    if len(groups) > 1:
        _check_groups(groups, knob.across, place, step)
    return Columns(groups) if len(groups) > 1 and knob.across == "columns" else groups


def _check_groups(groups: Groups, across: str, place: str, step: Step) -> None:
    method, shape = step.method, step.info.shape
    if across == "columns" and method not in EITHER_WAY:
        raise RecipeError(f"{place}: {method} tells columns from rows; give groups of rows, or take {', '.join(EITHER_WAY)}")
    size = shape[-1] if across == "columns" and len(shape) > 1 else shape[0] if across == "rows" and shape else 1
    if size % len(groups):
        raise RecipeError(
            f"{place}: {len(groups)} groups of {across} do not divide the {size} {across} of {step.name!r};"
            " take a number that does, or give this tensor a rule of its own before"
        )


def _columns(knobs: Mapping[str, Any], place: str, name: str) -> bool:
    """Whether the groups at a tensor are of columns. Raises RecipeError where some are of rows."""
    numbers = [each for knob in knobs.values() for each in (knob.values() if isinstance(knob, Mapping) else (knob,))]
    kinds = {isinstance(each, Columns) for each in numbers if isinstance(each, tuple) and len(each) > 1}
    if len(kinds) > 1:
        raise RecipeError(f"{place}: groups of rows and of columns at once for {name!r}; take one of the two in a rule")
    return kinds == {True}


def _refuse_dead_rules(rules: Mapping[str, Rule], names: Sequence[str]) -> None:
    """A rule that would match no tensor even if it stood first is a slip of the pen."""
    known = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    for place, rule in rules.items():
        if not any(rule.matches(name) for name in names):
            raise RecipeError(f"{place}: {rule.match!r} matches no tensor{nearest(rule.match.strip('*'), known)}")


def _refuse_dead_cases(rules: Mapping[str, Rule], steps: Iterable[Step]) -> None:
    """A filter that matches no tensor of any model is a slip of the pen."""
    asked = [(where, match) for place, rule in rules.items() for where, cases in _cases(rule, place) for match, _ in cases.cases]
    names = {name for step in steps for name in (step.name, *(step.origins or {}).values())} if asked else set()
    for where, match in asked:
        if not any(fnmatch.fnmatchcase(name, match) for name in names):
            known = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
            raise RecipeError(f"{where}: {match!r} matches no tensor{nearest(match.strip('*'), known)}")


def _cases(rule: Rule, place: str) -> Iterator[tuple[str, Cases]]:
    for name, knob in rule.knobs.items():
        values = knob.items() if isinstance(knob, Mapping) else [("", knob)]
        for source, value in values:
            yield from ((f"{place}.{name}.{source}".rstrip("."), cases) for cases in _within(value))


def _within(value: Any) -> Iterator[Cases]:
    """The cases of a value, and those within its steps and cases."""
    inner = [each for _, each in value.cases] if isinstance(value, Cases) else value.values if isinstance(value, Steps) else ()
    yield from [value] * isinstance(value, Cases)
    yield from (cases for each in inner for cases in _within(each))


def _check_whole(rule: Rule, place: str) -> None:
    """A number for a whole tensor has no rows, and where it is one for the whole model no depth."""
    for knob, where, curve in _curves(rule, place):
        if dial_of(rule.method, knob).whole and len(curve.points) > 1:
            rest = "weight" in rule.knobs and not dial_of(rule.method, "weight").whole
            remedy = "give rows to the weight" if rest else "give one number, or a list over depth"
            raise RecipeError(f"{where}: takes no rows, it is one number for a whole tensor; {remedy}")
        method, remedy = WHOLE_MODEL.get(knob, ("", ""))
        at_once = rule.method == method and rule.knobs.get("variant", "paper") == "paper"
        if at_once and len(set(curve.points[0])) > 1:
            raise RecipeError(f"{where}: {remedy}")


def _curves(rule: Rule, place: str) -> Iterator[tuple[str, str, Curve]]:
    """Every number of a rule: its knob, where it stands, and itself."""
    for name, knob in rule.knobs.items():
        for source, value in knob.items() if isinstance(knob, Mapping) else [("", knob)]:
            found = [value for _, value in value.cases] if isinstance(value, Cases) else [value]
            yield from ((name, f"{place}.{name}.{source}".rstrip("."), curve) for curve in found if isinstance(curve, Curve))


def _narrowed(rules: Mapping[str, Rule], steps: Iterable[Step]) -> Iterator[str]:
    """Where DELLA's window around a density reaches beyond 0 or 1, and is narrowed."""
    for place, rule in rules.items():
        mine = [step.knobs for step in steps if step.rule is rule and rule.method.startswith("della")]
        for source in rule.sources:
            densities = [knobs["density"][source][0] for knobs in mine]
            epsilons = [knobs["epsilon"][source][0] for knobs in mine]
            if any(0 < d < 1 and not e <= d <= 1 - e for d, e in zip(densities, epsilons, strict=True)):
                yield f"{place}.epsilon.{source}: density ± epsilon leaves [0, 1]; it is narrowed there (mergekit refuses it)"


def _check_sum(weight: Mapping[str, Groups], place: str, name: str) -> None:
    count = math.lcm(*map(len, weight.values()))
    for g in range(count):
        if not sum(groups[g * len(groups) // count] for groups in weight.values()):
            raise RecipeError(f"{place}.weight: add up to 0 at {name!r}; raise one, or set normalize: false")


def _config(recipe: Recipe, base: Checkpoint) -> dict[str, Any]:
    config = dict(base.config)
    if recipe.context:
        if not config:
            raise RecipeError(f"context: {base.path} has no config.json; leave `context` out, it extends language models only")
        config = rope.extend(config, recipe.context)
    if recipe.dtype and config:
        old = {"torch_dtype"} & config.keys()  # the name before transformers 5
        config |= dict.fromkeys(("dtype", *old), recipe.dtype)
    return config


def compare(name: str, source: Checkpoint, base: Checkpoint, *, stacked: bool = False) -> list[str]:
    """Raises CheckpointError where a source is not of the base's family; returns what differs without harm for certain.

    In a stack tensors are compared slice by slice: models may have other numbers of layers.
    """
    who = f"{source.path}: source {name!r}"
    for one, role in ((source, who), (base, f"{base.path}: the base")):
        if one.config.get("quantization_config"):
            raise CheckpointError(f"{role} is quantised; name the model it was quantised from")
    for key in SAME:
        ours, theirs = base.config.get(key), source.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise CheckpointError(
                f"{who} is of another architecture: {key} is {_shown(theirs)} there and {_shown(ours)} in the base {base.path};"
                " only fine-tunes of one model can be merged"
            )
    if not stacked:
        _compare_tensors(who, source, base)
    if base.tokenizer and source.tokenizer and base.tokenizer != source.tokenizer:
        raise CheckpointError(
            f"{who} has another tokenizer than the base {base.path}: they must not be merged as if they were one family;"
            " take fine-tunes that kept the base's tokenizer, or align their tokens (tokenizer: union, base or a source's name)"
        )
    return [f"{who}: {key} differs from the base's, which is kept" for key in ALIKE if _differ(key, source, base)]


def _differ(key: str, source: Checkpoint, base: Checkpoint) -> bool:
    ours, theirs = base.config.get(key), source.config.get(key)
    return ours is not None and theirs is not None and ours != theirs


def _compare_tensors(who: str, source: Checkpoint, base: Checkpoint) -> None:
    wanted = {name: base.tensors[name] for name in outputs(base)}
    extra = {name for name in outputs(source) if name not in base.tensors}
    for name, info in wanted.items():
        if name not in source.tensors:
            raise CheckpointError(f"{who} has no tensor {name!r}, the base {base.path} has{_untied(name)}")
        if source.tensors[name].shape != info.shape:
            raise CheckpointError(_other_shape(who, name, source, base))
        if info.dtype != source.tensors[name].dtype and not {info.dtype, source.tensors[name].dtype} <= set(FLOATS):
            raise CheckpointError(
                f"{who}: {name!r} is {source.tensors[name].dtype} there and {info.dtype} in the base {base.path};"
                " convert one of the two models"
            )
    if extra:
        name = min(extra)
        raise CheckpointError(f"{who} has a tensor {name!r}, the base {base.path} has none{_untied(name)}")


def _untied(name: str) -> str:
    if name.endswith(HEAD):
        return ": one ties it to the embedding (tie_word_embeddings), the other does not; save both the same way"
    return "; only fine-tunes of one model can be merged"


def _other_shape(who: str, name: str, source: Checkpoint, base: Checkpoint) -> str:
    ours, theirs = base.tensors[name].shape, source.tensors[name].shape
    tokens = base.config.get("vocab_size"), source.config.get("vocab_size")
    if tokens[0] != tokens[1] and tokens == (ours[0], theirs[0]) and ours[1:] == theirs[1:]:
        return (
            f"{who} has a vocabulary of {theirs[0]} tokens, the base {base.path} one of {ours[0]} ({name!r});"
            " vocabularies of different sizes cannot be merged: take fine-tunes that kept the base's tokenizer, or align their"
            " tokens (tokenizer: union, base or a source's name)"
        )
    return (
        f"{who}: {name!r} has the shape {list(theirs)} there and {list(ours)} in the base {base.path};"
        " only fine-tunes of one model can be merged"
    )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
