"""The layers of a model that have adapters attached, and what is put into them."""

from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.chosen import Chosen
from lyc_fx.attaching.flat import flat
from lyc_fx.attaching.layer import Layer
from lyc_fx.attaching.layer_program import How, LayerProgram
from lyc_fx.attaching.units import named
from lyc_fx.errors import Unsupported
from lyc_fx.merging.blockwise import threaded_scheduler


@final
class Layers:
    """Of one model, by path."""

    def __init__(self, model: nn.Module, room: Room, how: How, *, saved: bool) -> None:
        self.model, self.room, self._how, self._saved = model, room, how, saved
        self.by_path: dict[str, Layer] = {}

    def change(self, before: Chosen, chosen: Chosen, *, others: bool) -> None:
        """Put a choice into its places; if that fails, put in the one before. `others`: more than strengths differ."""
        merged, had = self.merged(chosen), set(self.by_path)
        try:
            self._put(chosen, merged, others=others)
        except BaseException:
            for path in self.by_path.keys() - had:
                self.by_path.pop(path).detach()
            self._put(before, self.merged(before), others=others)
            raise

    def merged(self, chosen: Chosen) -> dict[str, dict[str, Tensor]]:
        """The merged weights of modules without a program, by path and by their names in the module."""
        found: dict[str, dict[str, Tensor]] = {}
        if not chosen.substituted:
            return found  # without starting threads, which would take a fifth of a change of strengths
        with threaded_scheduler() as scheduler:
            for path, names in chosen.substituted.items():
                if self._how == "trainable":
                    raise Unsupported(f"{next(iter(names.values()))}: only Linear, Conv and Embedding can be trained")
                for own, name in names.items():
                    handle = chosen.weights[name]
                    out = torch.empty_like(base := handle.read(), memory_format=torch.contiguous_format)
                    chosen.binding.fill(name, base, out, scheduler, transposed=handle.transposed, effects={})
                    found.setdefault(path, {})[own] = out
            scheduler.finish()
        return found

    def forget_replaced(self) -> None:
        """Drop the layers whose modules are no longer the model's."""
        for path in list(self.replaced()):
            self.by_path.pop(path).detach()

    def replaced(self) -> Iterator[str]:
        """The paths of the layers whose modules are no longer the model's."""
        current = dict(self.model.named_modules(remove_duplicate=False))
        return (path for path, layer in self.by_path.items() if current.get(path) is not layer.module)

    def detach(self) -> None:
        """Give every module its own forward back."""
        for layer in self.by_path.values():
            layer.detach()
        self.by_path.clear()

    def _put(self, chosen: Chosen, merged: Mapping[str, Mapping[str, Tensor]], *, others: bool) -> None:
        for path in self.by_path.keys() - chosen.filled.keys() - merged.keys():
            self._clear(path)
        self._make({path: program for path, (program, _) in chosen.filled.items()}, merged)
        for path, (_, filled) in chosen.filled.items():
            with named(path):
                self.by_path[path].fill(filled, self.room, others=others)
        for path, values in merged.items():
            for name, tensor in self.by_path[path].values.items():
                tensor.copy_(values[name])

    def _make(self, programs: Mapping[str, LayerProgram], merged: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Give modules these programs, or room for merged weights, that do not have them yet."""
        known = self.by_path
        chained = {p: made for p, made in programs.items() if p not in known or known[p].program is not made}
        replaced = {p: v for p, v in merged.items() if p not in known or known[p].values.keys() != v.keys()}
        banks = {path: program.bank for path, program in chained.items()} | replaced
        modules = {path: self.model.get_submodule(path) for path in banks}
        devices = {path: next(module.parameters()).device for path, module in modules.items()}
        like = {(path, name): tensor for path, bank in banks.items() for name, tensor in bank.items()}
        held = flat(
            like, {(path, n): devices[path] if each.is_meta else each.device for (path, n), each in like.items()}
        )
        for path in banks.keys() & known.keys():
            known.pop(path).detach()
        for path, module in modules.items():
            own = {name: held[path, name] for name in banks[path]}
            if path in chained:
                known[path] = Layer.chained(module, chained[path], own, saved=self._saved)
            else:
                known[path] = Layer.substituted(module, own)

    def _clear(self, path: str) -> None:
        """Let a module run as without adapters, and keep its program where strength 0 does that."""
        layer = self.by_path[path]
        if layer.can_idle and layer.is_at_home:
            layer.fill([(term, None) for term in layer.terms], self.room)
        else:
            self.by_path.pop(path).detach()
