"""`convert`: the steps, and what was done for each module."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch

from lyc_fx.adapters import AdapterSet, Entry
from lyc_fx.chosen import Source, one
from lyc_fx.convert.gather import Made, gathered
from lyc_fx.convert.like import known_by, own_shapes
from lyc_fx.convert.metadata import metadata_of
from lyc_fx.convert.truncated import truncated
from lyc_fx.errors import BadAdapter, Unsupported, counted
from lyc_fx.families.locon import LoCon
from lyc_fx.formats import Contents, save, writer
from lyc_fx.naming import Names, Target, Written, without_wrappers
from lyc_fx.naming.components import component_of
from lyc_fx.shapes import Like, shapes_of

_SHOWN = 20
Path_ = str | os.PathLike[str]


@final
@dataclass(frozen=True)
class Conversion:
    """The output of a conversion, and how each of its modules came about."""

    parts: Mapping[str, Contents]
    """One, under the empty name; or for PEFT, whose adapters are each of one model, those of a pipeline's components"""
    modules: tuple[Made, ...]

    def __repr__(self) -> str:
        changed = sum(bool(each.how) for each in self.modules)
        parts = f" in {', '.join(self.parts)}" if len(self.parts) > 1 else ""
        return f"<Conversion: {counted(len(self.modules), 'module')}{parts}, {changed} not carried over as they are>"

    @property
    def contents(self) -> Contents:
        """The only part. Raises Unsupported where there are several."""
        if len(self.parts) > 1:
            raise Unsupported(f"there is one PEFT adapter for each of {', '.join(self.parts)}: see `parts`")
        return next(iter(self.parts.values()))

    def save(self, path: Path_, inputs: Iterable[Path_] = (), *, force: bool = False) -> None:
        """Write a file, or for PEFT a directory (`formats.save`), with one for each of several components in it."""
        save(self.contents if len(self.parts) == 1 else self.parts, path, inputs, force=force)


def convert(adapters: Source, to: str, *, like: Like | None = None, svd: int | None = None) -> Conversion:
    """Adapters, of a file or as `load` returned them, in another convention (`naming.Target`): lycoris, kohya, peft,
    diffusers, comfyui or nhwc.

    `like` is the model that they are for: a module, a safetensors file or a folder with some, or the shapes of its
    parameters. Without `like` the file's own names are taken for the model's; they must be dotted then, unless the
    target keeps them.

    An algorithm that the target does not have becomes LoRA where that is exact (LoHa of rank r²; LoKr; Tucker
    cores), in float32. With `svd`, what has no exact form, or one of a higher rank, becomes the best LoRA of that
    rank, and so does LoRA of a higher rank, with the error in the result. The metadata is kept, but for what it says of
    the network.

    Raises BadAdapter, listing every adapter that finds no parameter or does not fit; Unsupported, listing those that
    the target cannot hold.
    """
    try:
        target = Target(to)
    except ValueError as error:
        known = ", ".join(target.value for target in Target)
        raise Unsupported(f"there is no convention {to!r}, only {known}") from error
    adapters = one(adapters)
    if adapters.unread:
        raise BadAdapter(f"{adapters.source}: no format reads {', '.join(adapters.unread[:_SHOWN])}")
    if like is None:
        shapes = own_shapes(adapters, target)
    else:
        shapes = without_wrappers(shapes_of(like))
        adapters = known_by(adapters, shapes, like)
    made = _kept(adapters) if shapes is None else gathered(adapters, Written(Names(shapes), shapes, target))
    made = [_stored(each) for each in made]
    made = made if svd is None else _reduced(made, svd)
    try:
        return _written(adapters, made, target)
    except Unsupported as refused:
        return _written(adapters, _as_low_rank(made, svd, refused), target)


def _kept(adapters: AdapterSet) -> list[Made]:
    """Every adapter under the name that it has."""
    return [Made(e.module, e.leaf, e.adapter, e.adapter.weight_shape() or (), (e.module,)) for e in adapters.entries]


def _written(adapters: AdapterSet, made: list[Made], target: Target) -> Conversion:
    seen: set[tuple[str, str, type]] = set()
    for each in made:
        key = (each.module, each.leaf, type(each.adapter))
        if key in seen:
            raise BadAdapter(f"{adapters.source}: {', '.join(each.sources)}: {each.module} is named twice in this file")
        seen.add(key)
    parts = {}
    for component, own in _components(made, target).items():
        entries = tuple(Entry(module, each.leaf, each.adapter, ()) for module, each in own)
        contents = writer(target.value).write(replace(adapters, entries=entries))
        parts[component] = replace(contents, metadata=metadata_of(contents.metadata, made, target))
    return Conversion(parts, tuple(made))


def _components(made: list[Made], target: Target) -> dict[str, list[tuple[str, Made]]]:
    """The modules with their names, apart where they are of several components of a pipeline, for PEFT."""
    prefixes = {id(each): component_of(f"{each.module}.")[0] for each in made}
    several = len(set(prefixes.values())) > 1 and "" not in prefixes.values()
    if target is not Target.peft or not several:
        return {"": [(each.module, each) for each in made]}
    found: dict[str, list[tuple[str, Made]]] = defaultdict(list)
    for each in made:
        prefix = prefixes[id(each)]
        found[prefix[:-1]].append((each.module.removeprefix(prefix), each))
    return dict(found)


def _reduced(made: list[Made], rank: int) -> list[Made]:
    """LoRA of a higher rank, at this rank. Raises Unsupported for what cannot be reduced."""
    found, faults = [], []
    for each in made:
        plain = isinstance(each.adapter, LoCon) and each.adapter.mid is None
        if not plain or (each.adapter.rank or 0) <= rank:
            found.append(each)
            continue
        try:
            adapter, error = truncated(each.adapter, each.shape, rank)
            found.append(_stored(replace(each, adapter=adapter, how=(*each.how, "svd"), error=error)))
        except BadAdapter as error:
            faults.append(f"  {', '.join(each.sources)}: {error}")
    if faults:
        raise Unsupported("\n".join([f"{counted(len(faults), 'adapter')} cannot have rank {rank}:", *faults[:_SHOWN]]))
    return found


def _as_low_rank(made: list[Made], svd: int | None, refused: Unsupported) -> list[Made]:
    """What the target cannot hold as it is, as LoRA. Raises Unsupported for what has no such form."""
    lowered, faults = [], []
    for each in made:
        if (
            len(each.shape) < 2
            or each.leaf != "weight"
            or (isinstance(each.adapter, LoCon) and each.adapter.mid is None)
        ):
            lowered.append(each)
            continue
        try:
            lowered.append(_low_rank(each, svd))
        except BadAdapter as error:
            faults.append(f"  {', '.join(each.sources)}: {error}")
    if faults:
        advice = (
            ""
            if svd
            else "\n--svd RANK (svd=RANK) writes the best approximation of what does not depend on the weight."
        )
        raise Unsupported("\n".join([str(refused), *faults[:_SHOWN]]) + advice)
    return lowered


def _low_rank(each: Made, svd: int | None) -> Made:
    try:
        exact = each.adapter.low_rank(each.shape)
    except BadAdapter:
        if svd is None:
            raise
    else:
        if svd is None or exact.rank <= svd:
            return _stored(replace(each, adapter=exact, how=(*each.how, "low rank")))
    adapter, error = truncated(each.adapter, each.shape, svd)
    return _stored(replace(each, adapter=adapter, how=(*each.how, "svd"), error=error))


def _stored(made: Made) -> Made:
    """Products were formed in float64; they are stored in float32."""
    computed = made.how and any(f.dtype == torch.float64 for f in made.adapter.factors().values())
    return replace(made, adapter=made.adapter.to(torch.float32)) if computed else made
