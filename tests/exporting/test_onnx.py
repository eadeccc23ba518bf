"""Programs for ONNX Runtime: names, defaults, adapters in its own file format."""

from pathlib import Path

import pytest
import torch
from exporting.models import apart, captured, inputs, loha, lokr, lora, merged, net

import lyc_fx
from lyc_fx.errors import Unsupported

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("onnx")
    adapted = lyc_fx.splice(captured(), lora(3, 2.0), 0.7, rank=8)
    styles = lyc_fx.styles(lyc_fx.splice(captured(), [lora(3, 2.0), loha(2, 1.5), lokr(3.0)]))
    lyc_fx.export(captured(), found / "base.onnx", check=False)
    lyc_fx.export(lyc_fx.fold(adapted), found / "folded.onnx")
    lyc_fx.export(lyc_fx.slots(adapted), found / "slots.onnx", check=False)
    lyc_fx.export(styles, found / "styles.onnx", check=False)
    return found


def session(path: Path) -> object:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_the_folded_graph_is_the_base_s_with_other_weights(folder: Path) -> None:
    base, folded = (onnx.load(str(folder / f"{name}.onnx")) for name in ("base", "folded"))
    assert [node.op_type for node in base.graph.node] == [node.op_type for node in folded.graph.node]
    names = {each.name for each in folded.graph.initializer}
    assert names == {each.name for each in base.graph.initializer}
    parameters = {name for name, _ in net().named_parameters()}
    assert parameters <= names, "weights are called as in the state dict, those of batch norm too"
    assert not [name for name in names if "lyc_fx" in name]
    assert [each.name for each in folded.graph.input] == ["x", "scale"]
    assert [each.name for each in folded.graph.output] == ["out", "hidden.0", "hidden.1"]
    x, scale = inputs(5)
    assert apart(lyc_fx.bind(folder / "folded.onnx")(x, scale=scale), merged(lora(3, 2.0), 0.7, 5)) < 2e-6


def test_one_graph_takes_adapters_of_other_algorithms_and_ranks(folder: Path) -> None:
    slots, (x, scale) = lyc_fx.bind(folder / "slots.onnx"), inputs(5)
    for adapters, strength in ((lora(2, 3.0, seed=9), 0.5), (lora(11, 3.0, seed=8), -0.7), (loha(2, 1.5), 1.0)):
        slots.set(adapters, strength)
        assert apart(slots(x, scale=scale), merged(adapters, strength, 5)) < 2e-6


def test_it_runs_without_an_adapter_and_with_onnx_runtime_s_own(folder: Path) -> None:
    run, (x, scale) = session(folder / "slots.onnx"), inputs(5)
    given = {"x": x.numpy(), "scale": scale.numpy()}
    with torch.no_grad():
        plainly = net()(x, scale=scale)
    assert abs(run.run(["out"], given)[0] - plainly.out.numpy()).max() < 1e-5
    lyc_fx.pack(loha(2, 1.5), folder / "slots.onnx", folder / "loha.onnx_adapter", strength=0.6)
    adapter = runtime.LoraAdapter()
    adapter.Load(str(folder / "loha.onnx_adapter"))
    options = runtime.RunOptions()
    options.add_active_adapter(adapter)
    found = [torch.from_numpy(each) for each in run.run(None, given, options)]
    assert apart(found, merged(loha(2, 1.5), 0.6, 5)) < 2e-6


def test_each_sample_has_its_own_strengths(folder: Path) -> None:
    styles, (x, scale) = lyc_fx.bind(folder / "styles.onnx"), inputs(3)
    styles.strengths = [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.25, 0.5, -1.0]]
    y = torch.utils._pytree.tree_leaves(styles(x, scale=scale))
    sets = (lora(3, 2.0), loha(2, 1.5), lokr(3.0))
    for sample, row in enumerate(styles.strengths.tolist()):
        pairs = [(each, strength) for each, strength in zip(sets, row, strict=True) if strength]
        wanted = merged(pairs, 1.0, 3) if pairs else torch.utils._pytree.tree_leaves(net()(x, scale=scale))
        assert apart([each[sample] for each in y], [each[sample].detach() for each in wanted]) < 5e-6


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    from nets import VARIANTS, certain, one

    rotation = certain(next(v for v in VARIANTS if v[0].name == "diag-oft"), (15, 6))
    lifted = lyc_fx.slots(lyc_fx.splice(captured(), one(rotation, "lycoris_first"), rank=4))
    with pytest.raises(Unsupported, match=r"model.onnx: ONNX does not take this program: .*linalg_solve"):
        lyc_fx.export(lifted, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class Named(torch.nn.Module):
    """Whose outputs have the names of an input, and of what torch calls a result inside."""

    def forward(self, mul: torch.Tensor, add: torch.Tensor) -> dict[str, torch.Tensor]:
        inside = mul * 3
        return {"mul_1": inside + add, "mul": inside * add}


def test_names_that_stand_for_several_values(tmp_path: Path) -> None:
    given = torch.randn(3, 4), torch.randn(3, 4)
    lyc_fx.export(lyc_fx.capture(Named().eval(), given), tmp_path / "model.onnx", check=False)
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    assert [each.name for each in graph.input] == ["mul", "add"]
    assert [each.name for each in graph.output] == ["mul_1", "output.mul"]
    found, wanted = lyc_fx.bind(tmp_path / "model.onnx")(*given), Named()(*given)
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)
