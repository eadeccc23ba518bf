"""PEFT files from adapter sets: one method for the whole set, and a configuration that gives each module its scale.

A module's rank and alpha stand in patterns that match its whole name only. What one PEFT configuration cannot say is
refused, with the modules that it is said of.
"""

from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.replace import Replace
from lyc_fx.errors import Unsupported, counted, listing
from lyc_fx.formats.format import Contents
from lyc_fx.formats.peft.keys import PREFIX
from lyc_fx.formats.peft.writers import WRITERS
from lyc_fx.formats.peft.writers.module import Module


def contents(adapters: AdapterSet) -> Contents:
    """Tensors and `adapter_config.json`. Raises Unsupported, naming modules and reasons."""
    modules = _modules(adapters.entries)
    adapted = [module for module in modules if module.own]
    names = sorted({type(module.own[0].adapter).__name__ for module in adapted})
    writers = [w for w in WRITERS if any(isinstance(m.own[0].adapter, w.family) for m in adapted)]
    others = [m.name for m in adapted if not any(isinstance(m.own[0].adapter, w.family) for w in WRITERS)]
    if others:
        raise Unsupported(f"lyc-fx cannot write {', '.join(names)} for PEFT: {_listed(others)}")
    if len(writers) != 1:
        raise Unsupported(
            f"a PEFT file holds one method, not {' and '.join(w.method for w in writers) or 'none'}: "
            "write each apart (adapters.select)"
        )
    [writer] = writers
    faults = [f"  {m.name}: {fault}" for m in adapted if (fault := writer.fault(m)) is not None]
    if faults:
        raise Unsupported(listing(f"{counted(len(faults), 'module')} cannot be written as {writer.method}:", faults))
    config = {"peft_type": writer.method, "inference_mode": True, **writer.settings(adapted)}
    config["target_modules"] = [module.name for module in adapted]
    tensors = {
        f"{PREFIX}{m.name}.{factor}": value.contiguous() for m in adapted for factor, value in writer.tensors(m).items()
    }
    tensors |= {key: value.contiguous() for key, value in writer.common(adapted).items()}
    whole, replaced = _replacements(modules)
    if whole:
        config["modules_to_save"] = whole
    return Contents(tensors | replaced, adapters.metadata, config)


def _modules(entries: Sequence[Entry]) -> list[Module]:
    grouped: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        grouped[entry.module].append(entry)
    made = []
    for name, group in grouped.items():
        own = [e for e in group if e.leaf == "weight" and not isinstance(e.adapter, Replace)]
        bias = [e for e in group if e.leaf == "bias" and not isinstance(e.adapter, Replace)]
        new = [e for e in group if isinstance(e.adapter, Replace)]
        if len(own) > 1 or len(bias) > 1 or (bias and not own):
            raise Unsupported(f"{name}: PEFT has one adapter for each module, and a bias only with it")
        made.append(Module(name, tuple(own), tuple(bias), tuple(new)))
    return made


def _replacements(modules: Sequence[Module]) -> tuple[list[str], dict[str, Tensor]]:
    """The modules that are saved whole, and all tensors that replace a weight or a bias."""
    tensors: dict[str, Tensor] = {}
    whole: dict[str, None] = {}
    for module in modules:
        for entry in module.new:
            inside = "base_layer." if module.own else ""
            key, owner = f"{PREFIX}{module.name}.{inside}{entry.leaf}", module.name
            if f"{PREFIX}{module.name}" in entry.keys:  # read from a parameter that is no weight and no bias
                key, owner = f"{PREFIX}{module.name}", module.name.rpartition(".")[0]
            tensors[key] = entry.adapter.factors()["value"].contiguous()
            if not module.own:
                whole[owner] = None
    return list(whole), tensors


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")
