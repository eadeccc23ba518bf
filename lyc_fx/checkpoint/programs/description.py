"""What a program says about itself: whether adapters can be folded into it, and which are."""

import json
from collections.abc import Mapping
from dataclasses import replace

from lyc_fx.checkpoint.programs.program import MANIFEST, Program
from lyc_fx.checkpoint.provenance import Provenance
from lyc_fx.errors import Unsupported
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.storage.may_overwrite import FOLD

_ADVICE = {
    "slots": "takes its adapter as an input: give it one as it runs, lyc_fx.bind({0!r}).set(…), or export the program "
    "without lyc_fx.slots and fold into that",
    "styles": "has adapters inside, with strengths as an input: fold into the program exported without them",
    "adapted": "has adapters inside, beside its weights: lyc_fx.fold the program before its export, or fold into the "
    "program exported without them",
}


def refuse_adapters(program: Program) -> None:
    """Raise Unsupported for a program that has, or takes, adapters beside its weights."""
    manifest = _manifest(program)
    if manifest is not None and manifest.kind in _ADVICE:
        raise Unsupported(f"{program.path}: {_ADVICE[manifest.kind].format(program.path.name)}")


def texts_after(program: Program, provenance: Provenance) -> Mapping[str, str]:
    """The texts of the program with adapters folded into it."""
    texts = provenance.add_to({name: text for name, text in program.texts.items() if name == FOLD})
    manifest = _manifest(program)
    if manifest is None:
        return texts
    adapters = (*manifest.adapters, *provenance.entry["adapters"])
    return {MANIFEST: replace(manifest, kind="folded", adapters=adapters).text(), **texts}


def repeated(program: Program, provenance: Provenance) -> list[str]:
    """A note for each adapter that is in the program already, as it says."""
    manifest = _manifest(program)
    described = [] if manifest is None else [{"adapters": manifest.adapters}]
    known = json.loads(program.texts.get(FOLD, "[]"))
    return provenance.find_repeated({FOLD: json.dumps([*described, *known])})


def _manifest(program: Program) -> Manifest | None:
    text = program.texts.get(MANIFEST)
    return None if text is None else Manifest.read(text, program.path)
