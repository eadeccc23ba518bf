"""A program that is brought into another dtype, as a model is by `.half()` or `.to(dtype)`."""

import copy

import pytest
import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import WrongArgument

X = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.conv = nn.Linear(6, 5), nn.Conv2d(1, 3, (3, 2), stride=(1, 2), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.tanh(self.fc(x)).reshape(-1, 1, 5, 1)).relu()


def adapters() -> lyc_fx.AdapterSet:
    torch.manual_seed(1)
    return lyc_fx.load(
        {
            "lycoris_fc.lora_up.weight": torch.randn(5, 2),
            "lycoris_fc.lora_down.weight": torch.randn(2, 6),
            "lycoris_fc.alpha": torch.tensor(3.0),
            "lycoris_conv.lokr_w1": torch.randn(3, 1),
            "lycoris_conv.lokr_w2": torch.randn(1, 1, 3, 2),
            "lycoris_conv.alpha": torch.tensor(3.0),
        }
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("road", [lyc_fx.lower, lyc_fx.fold])
def test_lowered_and_folded_programs_follow(road: object, dtype: torch.dtype) -> None:
    model = Net().eval()
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters(), 0.7)
    program = road(lyc_fx.splice(lyc_fx.capture(model, (X,)), adapters(), 0.7))  # type: ignore[operator]
    ours, wanted = program.to(dtype)(X.to(dtype)), live.double()(X.double())
    assert ours.dtype == dtype
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # the factors are float32
    assert (ours - wanted).abs().max() <= 16 * eps * wanted.abs().max()
    unadapted = Net().double()(X.double())
    assert (ours - unadapted).abs().max() > 0.1 * wanted.abs().max()


def test_the_module_of_an_exported_program_is_captured_first() -> None:
    """As it is, its own check of the inputs would fail in the spliced program."""
    model = Net().eval()
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters(), 0.7)
    exported = torch.export.export(model, (X,))
    with pytest.raises(WrongArgument, match=r"ExportedProgram's module\(\) returns: bring the ExportedProgram"):
        lyc_fx.splice(exported.module(), adapters(), 0.7)
    for program in (lyc_fx.capture(exported), lyc_fx.capture(exported.module(), (X,))):
        torch.testing.assert_close(lyc_fx.splice(program, adapters(), 0.7)(X), live(X))
