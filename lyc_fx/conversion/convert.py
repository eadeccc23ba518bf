"""`convert`, and its result: the converted file, and what was done for each module.

The exact form of an algorithm as LoRA is `Adapter.low_rank`.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.binding.chosen import Source, one
from lyc_fx.conversion.gather import ConvertedAdapter, gather
from lyc_fx.conversion.like import own_shapes, use_model_names
from lyc_fx.conversion.metadata import update_metadata
from lyc_fx.conversion.truncated import truncate
from lyc_fx.errors import SHOWN, BadAdapter, Unsupported, counted, listing
from lyc_fx.formats import FORMATS, Contents, Format, formats, save, writer
from lyc_fx.formats.peft import Peft
from lyc_fx.inspection.shapes import Like, shapes_of
from lyc_fx.naming import Names, Target, TargetNames, without_wrappers
from lyc_fx.naming.components import component_of

Path_ = str | os.PathLike[str]


@final
@dataclass(frozen=True)
class Conversion:
    """The result of a conversion, and how each of its modules was made."""

    parts: Mapping[str, Contents]
    """One part with an empty name; or, for PEFT, where an adapter is for one model, a part for each component"""
    modules: tuple[ConvertedAdapter, ...]

    def __repr__(self) -> str:
        changed = sum(bool(each.how) for each in self.modules)
        parts = f" in {', '.join(self.parts)}" if len(self.parts) > 1 else ""
        return f"<Conversion: {counted(len(self.modules), 'module')}{parts}, {changed} not carried over as they are>"

    @property
    def contents(self) -> Contents:
        """The only part. Raises Unsupported if there are several."""
        if len(self.parts) > 1:
            raise Unsupported(f"there is one PEFT adapter for each of {', '.join(self.parts)}: see `parts`")
        return next(iter(self.parts.values()))

    def save(self, path: Path_, inputs: Iterable[Path_] = (), *, force: bool = False) -> None:
        """Write a file, or for PEFT a directory, with a directory in it for each part if there are several.

        `inputs` must not be overwritten; `force` replaces an existing output. Raises as `formats.save`.
        """
        save(self.contents if len(self.parts) == 1 else self.parts, path, inputs, force=force)


def convert(adapters: Source, to: str, *, like: Like | None = None, svd: int | None = None) -> Conversion:
    """Convert adapters to the convention `to`: lycoris, kohya, peft, diffusers, comfyui or nhwc (`naming.Target`),
    or to a format from outside (`lyc_fx.register`), by its name.

    `adapters` is a file, or what `load` returned. `like` is the model that they are for: a module, a safetensors file,
    a folder of such files, or a mapping from parameter names to shapes. Without `like`, the file's own names are taken
    as the model's, and must then be dotted, unless the target keeps them.

    If the target does not have an adapter's algorithm, it becomes LoRA where that is exact (LoHa, of rank r²; LoKr;
    Tucker cores), in float32. With `svd`, an adapter without an exact LoRA form, or with one of a higher rank than
    `svd`, becomes the best approximation by LoRA of rank `svd`, and so does LoRA of a higher rank; the errors are in
    the result. The metadata is kept, except for entries about the network, which are updated.

    Raises BadAdapter, listing every adapter that matches no parameter or does not fit, and Unsupported, listing those
    that the target cannot hold.
    """
    target, format_ = _convention(to)
    adapters = one(adapters)
    if adapters.unread:
        raise BadAdapter(f"{adapters.source}: no format reads {', '.join(adapters.unread[:SHOWN])}")
    if like is None:
        shapes = own_shapes(adapters, target)
    else:
        shapes = without_wrappers(shapes_of(like))
        adapters = use_model_names(adapters, shapes, like)
    made = _keep_names(adapters) if shapes is None else gather(adapters, TargetNames(Names(shapes), shapes, target))
    made = [_to_float32(each) for each in made]
    made = made if svd is None else _reduce_ranks(made, svd)
    try:
        return _write(adapters, made, target, format_)
    except Unsupported as refused:
        return _write(adapters, _as_low_rank(made, svd, refused), target, format_)


def _convention(to: str) -> tuple[Target, Format]:
    """The names and the format of a convention. Raises Unsupported."""
    known = {target.value: target for target in Target}
    known |= {format_.name: Target(format_.names) for format_ in formats() if format_ not in FORMATS}
    if to not in known:
        raise Unsupported(f"there is no convention {to!r}: use one of {', '.join(known)}")
    return known[to], writer(to)


def _keep_names(adapters: AdapterSet) -> list[ConvertedAdapter]:
    """Return every adapter under its own name."""
    return [
        ConvertedAdapter(e.module, e.leaf, e.adapter, e.adapter.weight_shape() or (), (e.module,))
        for e in adapters.entries
    ]


def _write(adapters: AdapterSet, made: list[ConvertedAdapter], target: Target, format_: Format) -> Conversion:
    seen: set[tuple[str, str, type]] = set()
    for each in made:
        key = (each.module, each.leaf, type(each.adapter))
        if key in seen:
            raise BadAdapter(f"{adapters.source}: {', '.join(each.sources)}: {each.module} is named twice in this file")
        seen.add(key)
    parts = {}
    for component, own in _components(made, format_).items():
        entries = tuple(Entry(module, each.leaf, each.adapter, ()) for module, each in own)
        contents = format_.write(replace(adapters, entries=entries))
        parts[component] = replace(contents, metadata=update_metadata(contents.metadata, made, target))
    return Conversion(parts, tuple(made))


def _components(made: list[ConvertedAdapter], format_: Format) -> dict[str, list[tuple[str, ConvertedAdapter]]]:
    """Return the modules with their names; for PEFT, grouped by the component of a pipeline that they belong to."""
    prefixes = {id(each): component_of(f"{each.module}.")[0] for each in made}
    several = len(set(prefixes.values())) > 1 and "" not in prefixes.values()
    if not isinstance(format_, Peft) or not several:
        return {"": [(each.module, each) for each in made]}
    found: dict[str, list[tuple[str, ConvertedAdapter]]] = defaultdict(list)
    for each in made:
        prefix = prefixes[id(each)]
        found[prefix[:-1]].append((each.module.removeprefix(prefix), each))
    return dict(found)


def _reduce_ranks(made: list[ConvertedAdapter], rank: int) -> list[ConvertedAdapter]:
    """Approximate LoRA of a higher rank by LoRA of this rank. Raises Unsupported if one cannot be approximated."""

    def reduced(each: ConvertedAdapter) -> ConvertedAdapter:
        return _truncated(each, rank) if _is_plain(each.adapter) and (each.adapter.rank or 0) > rank else each

    found, faults = _each(reduced, made)
    if faults:
        raise Unsupported(listing(f"{counted(len(faults), 'adapter')} cannot have rank {rank}:", faults))
    return found


def _as_low_rank(made: list[ConvertedAdapter], svd: int | None, refused: Unsupported) -> list[ConvertedAdapter]:
    """Turn every adapter that is not plain LoRA into LoRA, exactly or, with `svd`, approximately.

    `refused` is the error for the adapters as they were. Raises Unsupported for those that have no such form.
    """

    def lowered(each: ConvertedAdapter) -> ConvertedAdapter:
        return each if len(each.shape) < 2 or each.leaf != "weight" or _is_plain(each.adapter) else _low_rank(each, svd)

    found, faults = _each(lowered, made)
    if faults:
        advice = "--svd RANK (svd=RANK) writes the best LoRA of that rank, if changes do not depend on the weight."
        raise Unsupported(listing(str(refused), faults) + ("" if svd else f"\n{advice}"))
    return found


def _each(
    change: Callable[[ConvertedAdapter], ConvertedAdapter], made: list[ConvertedAdapter]
) -> tuple[list[ConvertedAdapter], list[str]]:
    """The changed adapters, and a line for each one that cannot be changed so."""
    found, faults = [], []
    for each in made:
        try:
            found.append(_to_float32(change(each)))
        except BadAdapter as error:
            faults.append(f"  {', '.join(each.sources)}: {error}")
    return found, faults


def _is_plain(adapter: Adapter) -> bool:
    return isinstance(adapter, LoCon) and adapter.mid is None


def _low_rank(each: ConvertedAdapter, svd: int | None) -> ConvertedAdapter:
    try:
        exact = each.adapter.low_rank(each.shape)
    except BadAdapter:
        if svd is None:
            raise
    else:
        if svd is None or (exact.rank or 0) <= svd:
            return replace(each, adapter=exact, how=(*each.how, "low rank"))
    return _truncated(each, svd)


def _truncated(each: ConvertedAdapter, rank: int) -> ConvertedAdapter:
    adapter, error = truncate(each.adapter, each.shape, rank)
    return replace(each, adapter=adapter, how=(*each.how, "svd"), error=error)


def _to_float32(made: ConvertedAdapter) -> ConvertedAdapter:
    """Convert factors that were computed in float64 to float32."""
    computed = made.how and any(f.dtype == torch.float64 for f in made.adapter.factors().values())
    return replace(made, adapter=made.adapter.to(torch.float32)) if computed else made
