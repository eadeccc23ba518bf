"""What an exported file says about itself: one JSON text, whatever the file's format."""

import json
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.errors import BadFile
from lyc_fx.exporting.form import form
from lyc_fx.exporting.interface import Value, bounds, inputs, outputs
from lyc_fx.exporting.known import Json, known_as_json
from lyc_fx.graph.bindable import bindable, ties
from lyc_fx.graph.program import BANK, facts, get_tensor, weights
from lyc_fx.graph.slots import ADAPTER

NAME = "manifest.json"
VERSION = 1


@final
@dataclass(frozen=True)
class Manifest:
    """Of one file."""

    kind: str
    """`folded`, `slots`, `styles`, `adapted` (with adapters as constants), or `base` (without any)"""
    inputs: tuple[Value, ...]
    """In the order of the flat inputs"""
    outputs: tuple[Value, ...]
    base: str
    """SHA-256 of the weights that are not of adapters: names, dtypes, shapes and bytes"""
    bounds: Json = field(default_factory=dict)
    """The smallest and the largest of each size that may vary, by its name"""
    adapters: tuple[Json, ...] = ()
    """Those that the program was made with: file, SHA-256, strength"""
    form: Json = field(default_factory=dict)
    """What adapters the program takes (`lyc_fx.exporting.form`)"""
    weights: Json = field(default_factory=dict)
    """Of a program without adapters: what they are bound to (`lyc_fx.exporting.known`), the names of each weight that
    has several (`ties`), and how much each was changed when adapters were folded (`changes`, as in a report)
    """
    sets: tuple[str, ...] = ()
    """The adapters whose strengths are given at each call, in order"""
    torch: str = torch.__version__
    lyc_fx: str = lyc_fx.__version__
    version: int = VERSION

    @classmethod
    def of(cls, program: GraphModule, kind: str, exported: ExportedProgram) -> Self:
        """Describe a plain program, and what was exported from it."""
        known, given = facts(program), inputs(program, exported)
        base = _digest(program)
        made = cls(kind, given, outputs(program), base, bounds(program), known.sources)
        return made._with(form=_form(program, given), weights=_weights(program, kind), sets=_sets(program))

    def _with(self, **changes: Any) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) for f in fields(self)} | changes)

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def read(cls, text: str, path: object) -> Self:
        """From JSON. Raises BadFile, which names the file, for what is none of ours, or of a later version."""
        try:
            data = json.loads(text)
            version = data["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadFile(f"{path}: holds no description by lyc-fx: export it with lyc_fx.export") from error
        if version != VERSION:
            raise BadFile(f"{path}: its description has version {version}, and this lyc-fx reads {VERSION}: update it")
        for name in ("inputs", "outputs"):
            data[name] = tuple(Value(**{**each, "shape": tuple(each["shape"])}) for each in data[name])
        return cls(**{**data, "adapters": tuple(data["adapters"]), "sets": tuple(data["sets"])})

    @property
    def form_digest(self) -> str:
        """What is equal for files that take the same packed adapters."""
        return sha256(json.dumps(self.form, sort_keys=True).encode()).hexdigest()


def _form(program: GraphModule, given: tuple[Value, ...]) -> Json:
    known = facts(program)
    if known.slots is None or known.known is None or known.places is None:
        return {}
    varying = {
        value.name.removeprefix(f"{ADAPTER}."): tuple(i for i, size in enumerate(value.shape) if isinstance(size, str))
        for value in given
    }
    terms = ((weight, term) for weight, made in known.places.merged.items() for term in made.terms)
    return form(known.known, known.slots, terms, varying)


def _weights(program: GraphModule, kind: str) -> Json:
    if kind not in ("base", "folded"):
        return {}
    report = facts(program).report
    changes = report.to_dict()["changes"] if report is not None else {}
    return {**known_as_json(bindable(program)), "ties": ties(program), "changes": changes}


def _sets(program: GraphModule) -> tuple[str, ...]:
    known = facts(program)
    names = known.styles or (known.slots.strengths if known.slots is not None else ())
    return tuple(name.split(".")[1] for name in names)


def _digest(program: GraphModule) -> str:
    found: dict[str, Tensor] = {}
    for node in weights(program):
        if not str(node.target).startswith(f"{BANK}."):
            found[str(node.target)] = get_tensor(program, str(node.target))
    total = sha256()
    for name, tensor in sorted(found.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()
