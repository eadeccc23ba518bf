"""What models and callers do around a capture: closures, no_grad blocks that write, autocast, sizes that vary."""

import copy
from typing import Any

import pytest
import torch
from one_layer import STRENGTH, factors, merged, x
from torch import Tensor, nn
from torch.nn import functional as F

import lyc_fx


class Closed(nn.Module):
    """Reads itself by way of something that a copy does not copy."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(6, 15).double()
        self.register_buffer("shift", torch.randn(15).double())
        inner = self.l
        match how:
            case "lambda":
                self.f = lambda v: self.l(v) + self.shift
            case "attribute":
                self.f = lambda v, owner=self: F.linear(v, owner.l.weight, owner.l.bias) + owner.shift
            case "hook":
                self.f = lambda v: v
                self.register_forward_hook(lambda module, inputs, output: inner(output) + self.shift)
            case "submodule":
                self.f = lambda v: inner(v) + self.shift

    def forward(self, v: Tensor) -> Tensor:
        return self.f(v)


@pytest.mark.parametrize("how", ["lambda", "attribute", "hook", "submodule"])
def test_a_forward_that_closes_over_its_model_is_adapted(how: str) -> None:
    model = Closed(how)
    program = lyc_fx.capture(model, (x(),))
    assert sorted(program.state_dict()) == sorted(model.state_dict())
    reads = {str(n.target) for n in program.graph.find_nodes(op="get_attr")}
    assert reads == {"l.weight", "l.bias", "shift"}
    tensors = factors()
    change = STRENGTH * 1.5 * tensors["lycoris_l.lora_up.weight"] @ tensors["lycoris_l.lora_down.weight"]
    wanted = x() @ (model.l.weight.detach() + change).t() + model.l.bias + model.shift
    adapted = lyc_fx.splice(program, lyc_fx.load(tensors), STRENGTH)
    folded = lyc_fx.fold(adapted, check=True)
    for made in (adapted, lyc_fx.lower(adapted, check=True), folded):
        torch.testing.assert_close(made(x()), wanted, rtol=1e-12, atol=1e-12)
    merged(model, tensors)
    torch.testing.assert_close(folded(x()), wanted, rtol=1e-12, atol=1e-12)


def test_a_constant_of_its_own_keeps_its_name() -> None:
    table = torch.randn(15).double()

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(6, 15).double()

        def forward(self, v: Tensor) -> Tensor:
            return self.l(v) + table

    program = lyc_fx.capture(Adds(), (x(),))
    assert sorted(program.state_dict()) == ["l.bias", "l.weight"]
    assert len({str(n.target) for n in program.graph.find_nodes(op="get_attr")}) == 3


class Center(nn.Module):
    """Uses a buffer, then updates it (a codebook, a running mean)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.o = nn.Linear(6, 15), nn.Linear(15, 3)
        self.register_buffer("mean", torch.zeros(15))
        self.double()

    def forward(self, v: Tensor) -> Tensor:
        h = self.l(v)
        y = self.o((h - self.mean) ** 2)
        with torch.no_grad():
            self.mean.lerp_(h.mean(0), 0.1)
        return y


class Erased(nn.Module):
    """Writes into an activation under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.o = nn.Linear(6, 15), nn.Linear(15, 3)
        self.double()

    def forward(self, v: Tensor) -> Tensor:
        h = self.l(v)
        with torch.no_grad():
            h[:, :4].zero_()
        return self.o(h)


class Nested(nn.Module):
    """Grad within no grad, and a write besides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(6))
        self.double()

    def forward(self, v: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.l(v)
            self.seen.add_(h.sum(0))
            with torch.enable_grad():
                k = self.l(v)
            z = self.l(k)
        return h.sum() + k.square().sum() + z.sum()


@pytest.mark.parametrize("kind", [Center, Erased, Nested])
def test_no_grad_blocks_that_write_train_as_the_model_does(kind: type[nn.Module]) -> None:
    def trained(model: nn.Module) -> list[Any]:
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        seen: list[Any] = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(x()).square().mean()
            loss.backward()
            seen += [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
            optimizer.step()
        return [*seen, *(b.clone() for b in model.buffers())]

    eager, captured = kind(), lyc_fx.capture(kind(), (x(),))
    wanted, given = trained(eager), trained(captured)
    assert len(wanted) == len(given)
    for one, other in zip(wanted, given, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def test_a_caller_s_autocast_changes_no_graph() -> None:
    model = nn.Sequential(nn.Linear(6, 15), nn.ReLU(), nn.Linear(15, 3))
    v, adapters = x().float(), lyc_fx.load(factors("lycoris_0"))
    program = lyc_fx.capture(model, (v,))
    plain = lyc_fx.splice(program, adapters, STRENGTH)
    wanted = [plain, lyc_fx.lower(plain), lyc_fx.fold(plain)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = lyc_fx.splice(lyc_fx.capture(model, (v,)), adapters, STRENGTH)
        given = [inside, lyc_fx.lower(inside, check=True), lyc_fx.fold(inside, check=True)]
    for one, other in zip(wanted, given, strict=True):
        assert lyc_fx.show(one) == lyc_fx.show(other) and torch.equal(one(v), other(v))
    live = merged(copy.deepcopy(model), factors("lycoris_0"))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(given[2](v), live(v)) and given[2](v).dtype is torch.bfloat16


class Chosen(nn.Module):
    """Sizes that depend on data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.o = nn.Linear(6, 15), nn.Linear(15, 3)
        self.double()

    def forward(self, v: Tensor) -> Tensor:
        h = self.l(v)
        return self.o(h[h.sum(-1) > 0])


@pytest.mark.parametrize("kind", ["locon", "lokr"])
def test_data_dependent_sizes_are_lowered(kind: str) -> None:
    rng = torch.Generator().manual_seed(1)
    lokr = {f"lycoris_l.lokr_w{i}": torch.randn(s, generator=rng).double() for i, s in ((1, (3, 2)), (2, (5, 3)))}
    tensors = factors() if kind == "locon" else lokr
    program = lyc_fx.splice(lyc_fx.capture(Chosen(), (x(12, 6),)), lyc_fx.load(tensors), STRENGTH)
    live = merged(Chosen(), tensors)
    for made in (program, lyc_fx.lower(program, check=True), lyc_fx.fold(program, check=True)):
        torch.testing.assert_close(made(x(12, 6)), live(x(12, 6)), rtol=1e-12, atol=1e-12)
    assert [step.fired for step in lyc_fx.history(lyc_fx.lower(program)) if step.name == "distribute"] == [1]


class Float8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter((torch.randn(15, 6) * 0.2).to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, v: Tensor) -> Tensor:
        return F.linear(v, self.weight.to(v.dtype))


def test_float8_weights_on_every_road() -> None:
    tensors = {key: value * 0.2 for key, value in factors("lycoris_0").items()}
    program = lyc_fx.capture(nn.Sequential(Float8()), (x().float(),))
    spliced = lyc_fx.splice(program, lyc_fx.load(tensors), STRENGTH)
    folded, live = lyc_fx.fold(spliced, check=True), merged(nn.Sequential(Float8()), tensors)
    assert torch.equal(folded.get_parameter("0.weight").float(), live[0].weight.float())
    lowered = lyc_fx.lower(spliced, check=True)
    torch.testing.assert_close(lowered(x().float()), live(x().float()), rtol=0.1, atol=0.1)


class Counted(nn.Module):
    """Divides by how many elements there are, of sizes that vary and that do not, and of none that varies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 15)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y.sum() / x.numel() + y.numel() / self.layer.weight.numel() + y[0, 0].numel()


def test_counts_of_elements_compile_without_a_break() -> None:
    model, x = Counted().double(), torch.randn(4, 5, 6, dtype=torch.float64)
    program = lyc_fx.capture(model, (x,), dynamic_shapes={"x": "batch length _"})
    text = lyc_fx.show(program)
    assert "sym_numel" not in text and "sym_size" in text
    compiled = torch.compile(program, fullgraph=True, backend="eager")
    for other in (x, torch.randn(7, 3, 6, dtype=torch.float64)):
        torch.testing.assert_close(program(other), model(other), rtol=1e-13, atol=0)
        torch.testing.assert_close(compiled(other), model(other), rtol=1e-13, atol=0)
