"""A recipe as a mergekit file; what mergekit cannot say is said in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.document import dump_yaml
from evomerge.errors import RecipeError
from evomerge.mergekit import along
from evomerge.mergekit.modules import names_of
from evomerge.mergekit.parameters import OVER_MODELS, PARAMETERS, Parameter, kept, to_filter
from evomerge.mergekit.tokenizer import to_block
from evomerge.recipe import Cases, Curve, Recipe, Rule, Source, Steps, locate

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
# Methods in which a weight of 0 leaves a model out
WEIGHTED = ("linear", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", *RANDOM)
OURS = {"clip": False, "variant": "mergekit"}  # knobs that mergekit does not have, and what it does
WRITERS = ("o_proj", "down_proj")  # what a slice's scale multiplies in models of Llama's kind

Asked = tuple[Rule, list[float] | None]  # a rule, and the depths of a slice's layers where its curves run over the whole stack
Entries = list[tuple[str | None, Any]]  # filter and value, the first that matches counts


def to_mergekit(recipe: Recipe) -> str:
    """mergekit YAML that merges the same; raises RecipeError with all that it has no words for."""
    text, reasons = expressed(recipe)
    if reasons:
        raise RecipeError(f"mergekit has no words for this recipe: {'; '.join(reasons)}")
    return text


def expressed(recipe: Recipe) -> tuple[str, list[str]]:
    """mergekit YAML that merges the same, or what it has no words for."""
    writer = _Writer(recipe)
    data = writer.data()
    notes = "".join(f"# {note}\n" for note in dict.fromkeys(writer.notes))
    return ("" if writer.reasons else notes + dump_yaml(data)), list(dict.fromkeys(writer.reasons))


@dataclass(frozen=True)
class Region:
    """A run of layers with one rule in mergekit's sense: what each source and all of them are told."""

    method: str
    based: bool
    shared: dict[str, Any]
    own: dict[str, dict[str, Any]]  # of each source
    layers: Mapping[str, tuple[int, int]] | None
    base: str

    def sources(self, models: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        for name in [*self.own, *[self.base] * (self.based and self.layers is not None)]:
            ranged = {} if self.layers is None else {"layer_range": list(self.layers[name])}
            parameters = {"parameters": self.own[name]} if self.own.get(name) else {}
            yield {"model": models[name], **ranged, **parameters}


@dataclass
class _Writer:
    """A recipe on its way to mergekit's YAML."""

    recipe: Recipe
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        recipe = self.recipe
        for key in ("context", "heal"):
            if getattr(recipe, key, None) is not None:
                self.reasons.append(f"`{key}`")
        beside = self._beside()
        regions = list(self._regions())
        every = [*regions, *beside.values()]
        if self.reasons or len({region.method for region in every}) > 1:
            self.reasons += ["slices of several methods: it has one for a whole model"] * (not self.reasons)
            return {}
        based = all(region.based for region in every)
        models = {name: self._model(name, source) for name, source in {"base": recipe.base, **recipe.sources}.items()}
        base = {"base_model": models["base"]} if based else {}
        if not recipe.slices:
            body: dict[str, Any] = {"models": list(regions[0].sources(models))}
            shared = regions[0].shared
        else:
            alike = all(region.shared == regions[0].shared for region in regions)
            body = {"slices": [self._slice(region, models, alike, based) for region in regions]}
            shared = regions[0].shared if alike else {}
        if beside:
            body = {"modules": self._modules(beside, body, shared, models)}
            shared = {}
        self._say_what_differs(every)
        parameters = {"parameters": shared} if shared else {}
        tokenizer = to_block(recipe.tokenizer, models) if recipe.tokenizer else {}
        chat = {"chat_template": recipe.chat_template} if recipe.chat_template else {}
        return {"merge_method": regions[0].method, **base, **body, **parameters, **self._dtype(), **tokenizer, **chat}

    def _slice(self, region: Region, models: Mapping[str, str], alike: bool, based: bool) -> dict[str, Any]:
        """`based` says that the base of the file is that of its slices, but for those that have their own."""
        own = {} if alike or not region.shared else {"parameters": region.shared}
        base = {"base_model": models[region.base]} if region.based and not (based and region.base == "base") else {}
        return {**base, "sources": list(region.sources(models)), **own}

    def _model(self, name: str, source: Source) -> str:
        adapter = getattr(source, "adapter", None)
        path = str(locate(source.model)) if source.model.startswith("zoo:") else source.model
        if "+" in path or (adapter and "+" in adapter):
            self.reasons.append(f"the path of {name!r}, in which a + stands for an adapter")
        return f"{path}+{adapter}" if adapter else path

    def _dtype(self) -> dict[str, str]:
        """mergekit computes in `dtype`: float32, so that it rounds once as we do."""
        dtype = self.recipe.dtype
        if dtype is None:
            return {}
        return {"dtype": dtype} if dtype in ("float32", "float64") else {"dtype": "float32", "out_dtype": dtype}

    def _say_what_differs(self, regions: Sequence[Region]) -> None:
        if self.recipe.dtype is None:
            self.notes.append("the recipe names no dtype: mergekit computes in the models' own and rounds at every step")
        if any(map(_has_gradient, regions)):
            self.notes.append("gradients: final norm and lm_head have their last value in evomerge, in mergekit their first")
        if regions[0].method in RANDOM:
            self.notes.append("random masks are mergekit's own: run it with --random-seed")

    # --- several towers, of which one is stacked

    def _beside(self) -> dict[str, Region]:
        """The regions beside a stack by the modules that they are of."""
        rules = self.recipe.rules
        if all(rule.stacked for rule in rules):
            return {}
        found = {rule.match: self._region([(replace(rule, match="*"), None)], None) for rule in rules if not rule.stacked}
        return {match: region for match, region in found.items() if region}

    def _modules(
        self, beside: Mapping[str, Region], stack: dict[str, Any], shared: dict[str, Any], models: Mapping[str, str]
    ) -> dict[str, Any]:
        """Each module by itself; what the stack's slices share stands in its own."""
        matches = list(dict.fromkeys([*(rule.match for rule in self.recipe.rules), "*"]))
        names = names_of(matches, models["base"])
        if not names:
            self.reasons.append(f"rules for {', '.join(matches)} beside a stack: it has no such modules")
        parameters = {"parameters": shared} if shared else {}
        return {
            name: {"models": list(beside[match].sources(models)), "parameters": beside[match].shared}
            if match in beside
            else {**stack, **parameters}
            for name, match in names.items()
        }

    # --- regions: the whole model, or a slice

    def _regions(self) -> Iterator[Region]:
        recipe = self.recipe
        if not recipe.slices:
            if region := self._region([(rule, None) for rule in recipe.rules], None):
                yield region
            return
        total, offset = sum(part.count for part in recipe.slices), 0
        for i, part in enumerate(recipe.slices):
            depths = [(offset + step) / max(total - 1, 1) for step in range(part.count)]
            rules = [*((rule, None) for rule in part.rules), *((rule, depths) for rule in recipe.rules if rule.stacked)]
            if region := self._region(rules, part.layers):
                yield self._scaled(region, part.scale, i)
            offset += part.count

    def _region(self, rules: Sequence[Asked], layers: Mapping[str, tuple[int, int]] | None) -> Region | None:
        """Rules as filters: the first that matches counts in both. Those behind one that takes all are never asked."""
        end = next((i for i, (rule, _) in enumerate(rules) if rule.match == "*"), len(rules) - 1)
        asked = rules[: end + 1]
        methods = list(dict.fromkeys(rule.method for rule, _ in asked))
        filters = [self._filter(rule.match) for rule, _ in asked]
        if len(methods) > 1:
            self.reasons.append(f"rules of several methods ({', '.join(methods)}): it has one for a whole model")
        for method in methods:
            if method not in PARAMETERS:
                self.reasons.append(f"method {method}")
        if self.reasons:
            return None
        if len(bases := {rule.base for rule, _ in asked}) > 1 or (layers is None and bases != {"base"}):
            self.reasons.append("a base of a rule's own: it has one for the whole model, or for a slice")
        for rule, _ in asked:
            self._check_ours(rule)
        method, names = methods[0], list(dict.fromkeys(name for rule, _ in asked for name in rule.sources))
        if method not in WEIGHTED and any(set(rule.sources) != set(names) for rule, _ in asked):
            self.reasons.append(f"rules of {method} with different sources: none of its parameters leaves one out")
        own: dict[str, dict[str, Any]] = {name: {} for name in names}
        shared: dict[str, Any] = {}
        for name, parameter in PARAMETERS[method].items():
            if parameter.idle:
                continue
            if parameter.scope == "shared":
                shared |= self._set(name, parameter, self._entries(asked, filters, name, parameter, None))
                continue
            for source in names:
                own[source] |= self._set(name, parameter, self._entries(asked, filters, name, parameter, source))
        return Region(method, self._based(asked[0][0]), shared, own, layers, asked[0][0].base)

    def _based(self, rule: Rule) -> bool:
        return rule.method not in OVER_MODELS and rule.knobs.get("between", "deltas") == "deltas"

    def _check_ours(self, rule: Rule) -> None:
        for knob, theirs in OURS.items():
            if rule.knobs.get(knob, theirs) != theirs:
                self.reasons.append(f"{rule.method} with {knob}: {str(rule.knobs[knob]).lower()}")
        if rule.method == "karcher":
            if rule.knobs["between"] == "deltas":
                self.reasons.append("karcher between deltas")
            weights = rule.knobs["weight"]
            if isinstance(weights, Mapping) and len(set(weights.values())) > 1:
                self.reasons.append("karcher with unequal weights")

    def _filter(self, match: str) -> str | None:
        found = to_filter(match)
        if found is None:
            self.reasons.append(f"the pattern {match!r}: its filters are parts of names")
            return None
        if not found[1]:
            self.notes.append(f"filter {found[0]!r}: in evomerge {match!r}; mergekit looks for it anywhere in a name")
        return found[0]

    def _entries(
        self,
        asked: Sequence[Asked],
        filters: Sequence[str | None],
        name: str,
        parameter: Parameter,
        source: str | None,
    ) -> Entries:
        entries: Entries = []
        for (rule, depths), filter_ in zip(asked, filters, strict=True):
            if source is not None and source not in rule.sources:
                entries += [(filter_, 0.0)] if parameter.knob == "weight" else []
                continue
            knob = along.FLAGS[name](rule.knobs["along"]) if name in along.FLAGS else rule.knobs[parameter.knob]
            value = knob[source or ""] if isinstance(knob, Mapping) else knob
            if isinstance(value, Cases) and filter_ is not None:
                self.reasons.append(f"cases by name within a rule for {rule.match!r}")
            cases = value.cases if isinstance(value, Cases) else [(rule.match, value)]
            entries += [(self._filter(match), self._value(each, depths, parameter)) for match, each in cases]
        return entries

    def _value(self, value: Any, depths: list[float] | None, parameter: Parameter) -> Any:
        if isinstance(value, Steps) and not any(isinstance(each, Steps | Cases) for each in value.values):
            return _stepped(value, depths)
        if isinstance(value, Steps | Cases):
            self.reasons.append(f"{parameter.knob} by depth or name within steps or cases")
        if not isinstance(value, Curve):
            return value
        if len(value.points) > 1:
            self.reasons.append(f"{parameter.knob} by groups of {value.across}")
        points = [value.at(depth)[0] for depth in depths] if depths and len(value.points[0]) > 1 else list(value.points[0])
        points = kept(points) if parameter.rest else points
        return points if len(set(points)) > 1 else points[0]

    def _set(self, name: str, parameter: Parameter, entries: Entries) -> dict[str, Any]:
        """A parameter as mergekit takes it; left out where it is mergekit's own default."""
        default = 1.0 if parameter.knob == "scale" else parameter.default
        if all(value == entries[0][1] for _, value in entries):
            value = entries[0][1]
            return {} if value == default else {name: value}
        cases = [({} if filter_ is None else {"filter": filter_}) | {"value": value} for filter_, value in entries]
        return {name: cases}

    def _scaled(self, region: Region, scale: float, i: int) -> Region:
        if scale == 1:
            return region
        own = {source: dict(parameters) for source, parameters in region.own.items()}
        parameters = next(iter(own.values()))
        if region.method != "passthrough" or isinstance(parameters.get("scale", 1.0), list):
            self.reasons.append(f"slices[{i}].scale: it scales nothing but what passthrough copies")
            return region
        before = parameters.get("scale", 1.0)
        filters = [{"filter": name, "value": scale * before} for name in WRITERS]
        parameters["scale"] = [*filters, {"value": before}]
        self.notes.append(f"scale of a slice: written for tensors called {' and '.join(WRITERS)}")
        return replace(region, own=own)


def _stepped(steps: Steps, depths: list[float] | None) -> Any:
    """The values in turn; of a slice's layers, where the steps run over the whole stack."""
    values = [steps.at(depth) for depth in depths] if depths else list(steps.values)
    if all(value == values[0] for value in values):
        return values[0]
    last = len(values) - 1
    if depths and any(int(i / last * last) < i for i in range(last)):  # mergekit's rounding would miss a layer's own step
        return [values[0], *(value for value in values[1:] for _ in range(2))]
    return values


def _has_gradient(region: Region) -> bool:
    return any(map(_varies, (*region.shared.values(), *(v for own in region.own.values() for v in own.values()))))


def _varies(value: Any) -> bool:
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return any(_varies(item["value"]) for item in value)
    return isinstance(value, list) and value[0] != value[-1]
