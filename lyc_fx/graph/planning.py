"""Planning: for each adapted layer the form that costs least, by the arithmetic and traffic of its operators."""

from collections.abc import Mapping
from dataclasses import replace

import sympy
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from lyc_fx.algebra.layer import NoChain
from lyc_fx.errors import WrongArgument
from lyc_fx.graph.chains import Lowering, Reading
from lyc_fx.graph.chains.worth import per_call
from lyc_fx.graph.costs.kernels import kernels, nbytes
from lyc_fx.graph.costs.machine import Machine, measured
from lyc_fx.graph.layers import Site, sites
from lyc_fx.graph.merged_weight import formula_nodes
from lyc_fx.graph.plan import Form, Plan, Planned
from lyc_fx.graph.program import captured, without_autocast
from lyc_fx.graph.readers import reads_bank
from lyc_fx.graph.symbolic import symbol_names

TOLERANCE = 1.05
"""A form that takes less memory may take so much longer than the fastest"""
_SCALES = [2**power for power in range(17)]


def plan(
    program: GraphModule,
    *,
    sizes: Mapping[str, int] | None = None,
    memory: int | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Choose how each adapted layer of a spliced program runs: as a chain on activations, with a merged weight that is
    resident (computed once by `lyc_fx.stage`), or with one that every call rebuilds.

    Times are predicted from the operators of each form: `Σ max(flops / F, bytes / B) + launch` over its kernels, with
    F, B and launch of `machine`, by default measured on the program's device. Of the forms within 5 % of the fastest
    the one that takes the least memory is chosen, while merged weights fit into `memory` bytes (None: no limit).
    `sizes` are those of the dynamic dimensions, as in `{"input.shape[1]": 256}`; by default those of the capture.

    Pass the result to `lyc_fx.lower`, then `lyc_fx.stage`. Print it for a table. Raises WrongArgument for an unknown
    size.
    """
    if memory is not None and memory < 0:
        raise WrongArgument(f"memory is {memory} bytes: it must be 0 or more")
    with without_autocast():
        at = _sizes(captured(program), sizes or {})
        lowering = Lowering(program, always=True)
        names = {symbol: symbol_names(program).get(str(symbol), str(symbol)) for symbol in at}
        rows = [_row(lowering, site, at, names, machine) for site in sites(program.graph) if reads_bank(site.weight)]
    return Plan(tuple(_within(rows, memory)))


def _sizes(gm: GraphModule, given: Mapping[str, int]) -> dict[sympy.Symbol, int]:
    names, found = symbol_names(gm), dict[sympy.Symbol, int]()
    for name, size in given.items():
        if size < 1:
            raise WrongArgument(f"the size {name} is {size}: it must be 1 or more")
    unknown = sorted(set(given) - set(names.values()))
    if unknown:
        raise WrongArgument(f"there is no dynamic size {unknown[0]}: there are {', '.join(names.values()) or 'none'}")
    for node in gm.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, torch.SymInt):
                for symbol in size.node.expr.free_symbols:
                    found[symbol] = given.get(names.get(str(symbol), ""), size.node.hint or 64)
    return found


def _row(
    lowering: Lowering,
    site: Site,
    at: Mapping[sympy.Symbol, int],
    names: Mapping[sympy.Symbol, str],
    given: Machine | None,
) -> Planned:
    node = site.node
    machine = given or measured(node.meta["val"].device, node.meta["val"].dtype)
    try:
        reading = Reading.of(site)
    except NoChain:
        return Planned(node.name, "resident", str(site.weight))
    own = machine.seconds(kernels([node]))
    formula = formula_nodes(reading.merged)
    seconds: dict[Form, sympy.Expr] = {"resident": own, "rebuilt": own + machine.seconds(kernels(formula))}
    weight = int(nbytes(reading.merged.meta["val"]))
    memory: dict[Form, int] = {"resident": weight, "rebuilt": 0}
    found = lowering.chain_of(reading)
    if found.graph is not None:
        seconds["chain"] = machine.seconds(kernels(per_call(found.graph)))
        memory["chain"] = _staged(found.graph) + (weight if found.remains else 0)
    base = _value(own, at)
    ratios = {form: _value(cost, at) / base for form, cost in seconds.items()}
    best = min(ratios.values())
    form = min((f for f in ratios if ratios[f] <= TOLERANCE * best), key=lambda f: memory[f])
    adapters, flips = ", ".join(found.names), _flips(seconds, at, names)
    return Planned(node.name, form, str(reading.base.target), adapters, base, ratios, memory, flips)


def _staged(chain: Graph) -> int:
    """The bytes of what a chain reads, and no call changes."""
    calls = set(per_call(chain))
    read = {s for node in calls for s in node.all_input_nodes} - calls
    return int(sum(nbytes(s.meta["val"]) for s in read if s.op != "placeholder"))


def _value(cost: sympy.Expr, at: Mapping[sympy.Symbol, int]) -> float:
    return float(cost.xreplace({symbol: sympy.Integer(size) for symbol, size in at.items()}))


def _flips(
    seconds: Mapping[Form, sympy.Expr], at: Mapping[sympy.Symbol, int], names: Mapping[sympy.Symbol, str]
) -> str:
    """Where the faster of chain and rebuilt changes, as the size that varies most grows from 1."""
    if "chain" not in seconds or not at:
        return ""
    symbol = max(at, key=lambda s: at[s])
    difference = seconds["chain"] - seconds["rebuilt"]
    ahead = [_value(difference, {**at, symbol: scale}) < 0 for scale in _SCALES]
    if len(set(ahead)) == 1:
        return f"{'chain' if ahead[0] else 'rebuilt'} at every size"
    last = ahead.index(not ahead[0])
    low, high = _SCALES[last - 1], _SCALES[last]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (_value(difference, {**at, symbol: middle}) < 0) == ahead[0] else (low, middle)
    first, then = ("chain", "rebuilt") if ahead[0] else ("rebuilt", "chain")
    return f"{first} below {names[symbol]} = {high}, {then} above"


def _within(rows: list[Planned], memory: int | None) -> list[Planned]:
    """Keep the merged weights resident that save the most time for their bytes, as far as they fit."""
    if memory is None:
        return rows
    resident = [row for row in rows if row.form == "resident" and row.ratios and row.memory]
    kept, left = set[str](), memory
    for row in sorted(resident, key=_saving, reverse=True):
        assert row.memory is not None
        if row.memory["resident"] <= left:
            kept.add(row.site)
            left -= row.memory["resident"]
    return [row if row.site in kept or row not in resident else replace(row, form=_second(row)) for row in rows]


def _second(row: Planned) -> Form:
    assert row.ratios is not None
    others: list[Form] = ["chain", "rebuilt"] if "chain" in row.ratios else ["rebuilt"]
    return min(others, key=row.ratios.__getitem__)


def _saving(row: Planned) -> float:
    assert row.ratios is not None and row.memory is not None
    return row.seconds * (row.ratios[_second(row)] - row.ratios["resident"]) / row.memory["resident"]
