"""Weight norm: modules that are called or registered twice, and directions that two layers share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import lyc_fx
from lyc_fx.errors import Unsupported

STRENGTH = 0.7
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "hook": weight_norm,
    "parametrization": parametrizations.weight_norm,
}


class Net(nn.Module):
    """One normed layer, called twice; under two names if asked."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module], *, named_twice: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = norm(nn.Linear(6, 6).double())
        self.named_twice = named_twice
        if named_twice:
            self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return (self.b if self.named_twice else self.a)(torch.tanh(self.a(x)))


def factors(name: str) -> tuple[dict[str, Tensor], Tensor]:
    rng = torch.Generator().manual_seed(1)
    up, down = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((6, 2), (2, 6)))
    keys = {f"lycoris_{name}.lora_up.weight": up, f"lycoris_{name}.lora_down.weight": down}
    return keys | {f"lycoris_{name}.alpha": torch.tensor(3.0)}, STRENGTH * 1.5 * up @ down


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("norm", NORMS)
def test_every_call_is_adapted(norm: str, name: str) -> None:
    model = Net(NORMS[norm], named_twice=name == "b")
    tensors, change = factors(name)
    weight, bias = model.a.weight.detach() + change, model.a.bias.detach()
    wanted = torch.tanh(X @ weight.t() + bias) @ weight.t() + bias
    adapted = lyc_fx.splice(lyc_fx.capture(model, (X,)), lyc_fx.load(tensors), STRENGTH)
    folded = lyc_fx.fold(adapted, check=True)
    for program in (adapted, lyc_fx.lower(adapted, check=True), folded):
        torch.testing.assert_close(program(X), wanted, rtol=1e-12, atol=1e-12)
    assert sorted(folded.state_dict()) == sorted(model.state_dict())
    assert all(0 < change < 100 for change in lyc_fx.report(folded).changes.values() if change)
    lyc_fx.merge(model, lyc_fx.load(tensors), STRENGTH)
    torch.testing.assert_close(model(X), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_a_shared_direction_is_refused_in_the_live_model_and_untied_in_a_graph(norm: str) -> None:
    model = nn.Sequential(NORMS[norm](nn.Linear(6, 6).double()), nn.Tanh(), NORMS[norm](nn.Linear(6, 6).double()))
    if norm == "hook":
        model[2].weight_v = model[0].weight_v
    else:
        model[2].parametrizations.weight.original1 = model[0].parametrizations.weight.original1
    tensors, change = factors("0")
    second = model[2].weight.detach().clone() if norm != "hook" else None
    model(X)
    second = model[2].weight.detach().clone() if second is None else second
    hidden = torch.tanh(X @ (model[0].weight.detach() + change).t() + model[0].bias)
    wanted = hidden @ second.t() + model[2].bias
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, (X,)), lyc_fx.load(tensors), STRENGTH), check=True)
    torch.testing.assert_close(folded(X), wanted, rtol=1e-12, atol=1e-12)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Unsupported, match="would change the other weight as well"):
        lyc_fx.merge(model, lyc_fx.load(tensors), STRENGTH)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
