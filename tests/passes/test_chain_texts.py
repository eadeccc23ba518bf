"""Chains as text. (Those of LoCon and LoKr on linear layers are in test_distribute.)"""

import pytest
import torch
from golden import expect
from lowering import CONV, EVEN, GROUPED, LINEAR, adapted, made
from nets import Case
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.families import Adapter


def text(program: GraphModule) -> str:
    """The graph from its input on."""
    shown = lyc_fx.show(program)
    return shown[shown.index("x = input") :]


TEXTS: dict[str, tuple[Case, tuple[Adapter, ...], str]] = {
    "columns in groups": (
        CONV,
        (made("ia3", CONV),),
        """
        x = input
        reshape_3 = aten.reshape(add, [6, 1, 1])
        repeat = aten.repeat(reshape_3, [2, 1, 1])
        mul_2 = aten.mul.Tensor(x, repeat)
        conv2d_1 = aten.conv2d(mul_2, layer.weight, layer.bias, [2, 1], [1, 2], [2, 1], 2)
        return (conv2d_1)
        """,
    ),
    "rows: rotated, rescaled, and then the bias": (
        EVEN,
        (made("diag-oft", EVEN, "rescale"),),
        """
        x = input
        linear_1 = aten.linear(x, layer.weight)
        unflatten = aten.unflatten.int(linear_1, -1, [8, 2])
        einsum = aten.einsum('nab,...nb->...na', [transpose_1, unflatten])
        flatten = aten.flatten.using_ints(einsum, -2)
        reshape_4 = aten.reshape(add_3, [-1])
        mul_5 = aten.mul.Tensor(flatten, reshape_4)
        add_4 = aten.add.Tensor(mul_5, layer.bias)
        return (add_4)
        """,
    ),
    "rotation within groups: each block is a group of a 1×1 convolution": (
        GROUPED,
        (made("diag-oft", GROUPED),),
        """
        x = input
        conv2d_1 = aten.conv2d(x, layer.weight, None, [1, 1], [1, 1], [1, 1], 2)
        reshape_3 = aten.reshape(transpose_1, [12, 3, 1, 1])
        conv2d_2 = aten.conv2d(conv2d_1, reshape_3, None, [1, 1], [0, 0], [1, 1], 4)
        reshape_4 = aten.reshape(layer.bias, [-1, 1, 1])
        add_3 = aten.add.Tensor(conv2d_2, reshape_4)
        return (add_3)
        """,
    ),
    "input map: one pass through the base layer": (
        LINEAR,
        (made("glora", LINEAR),),
        """
        x = input
        linear_1 = aten.linear(x, lyc_fx.0.layer.weight.b2)
        linear_2 = aten.linear(linear_1, lyc_fx.0.layer.weight.b1)
        linear_3 = aten.linear(x, lyc_fx.0.layer.weight.a2)
        linear_4 = aten.linear(linear_3, lyc_fx.0.layer.weight.a1)
        mul_2 = aten.mul.Tensor(linear_4, mul)
        add_2 = aten.add.Tensor(x, mul_2)
        linear_5 = aten.linear(add_2, layer.weight, layer.bias)
        mul_3 = aten.mul.Tensor(linear_2, mul)
        add_3 = aten.add.Tensor(linear_5, mul_3)
        return (add_3)
        """,
    ),
    "input map beside another adapter: a second pass, which does not see that one": (
        LINEAR,
        (made("locon", LINEAR), made("glora", LINEAR)),
        """
        x = input
        linear_1 = aten.linear(x, lyc_fx.1.layer.weight.b2)
        linear_2 = aten.linear(linear_1, lyc_fx.1.layer.weight.b1)
        linear_3 = aten.linear(x, lyc_fx.1.layer.weight.a2)
        linear_4 = aten.linear(linear_3, lyc_fx.1.layer.weight.a1)
        linear_7 = aten.linear(x, lyc_fx.0.layer.weight.down)
        linear_8 = aten.linear(linear_7, lyc_fx.0.layer.weight.up)
        linear_9 = aten.linear(x, layer.weight, layer.bias)
        mul_5 = aten.mul.Tensor(linear_8, mul)
        add_5 = aten.add.Tensor(linear_9, mul_5)
        linear_6 = aten.linear(linear_4, layer.weight)
        add_3 = aten.add.Tensor(linear_6, linear_2)
        mul_4 = aten.mul.Tensor(add_3, mul_2)
        add_4 = aten.add.Tensor(add_5, mul_4)
        return (add_4)
        """,
    ),
    "Khatri–Rao": (
        LINEAR,
        (made("loha", LINEAR, rank=2),),
        """
        x = input
        unsqueeze = aten.unsqueeze(lyc_fx.0.layer.weight.w1_a, 2)
        unsqueeze_1 = aten.unsqueeze(lyc_fx.0.layer.weight.w2_a, 1)
        mul_3 = aten.mul.Tensor(unsqueeze, unsqueeze_1)
        flatten = aten.flatten.using_ints(mul_3, 1, 2)
        unsqueeze_2 = aten.unsqueeze(lyc_fx.0.layer.weight.w1_b, 1)
        unsqueeze_3 = aten.unsqueeze(lyc_fx.0.layer.weight.w2_b, 0)
        mul_4 = aten.mul.Tensor(unsqueeze_2, unsqueeze_3)
        flatten_1 = aten.flatten.using_ints(mul_4, 0, 1)
        linear_1 = aten.linear(x, flatten_1)
        linear_2 = aten.linear(linear_1, flatten)
        linear_3 = aten.linear(x, layer.weight, layer.bias)
        mul_5 = aten.mul.Tensor(linear_2, lyc_fx.0.strength)
        add_1 = aten.add.Tensor(linear_3, mul_5)
        return (add_1)
        """,
    ),
    "Kronecker in groups: each has its rows of w1": (
        CONV,
        (made("lokr", CONV),),
        """
        x = input
        unflatten = aten.unflatten.int(x, -3, [2, 2, 3])
        flatten = aten.flatten.using_ints(unflatten, 0, -4)
        conv2d_1 = aten.conv2d(flatten, lyc_fx.0.layer.weight.w2, None, [2, 1], [1, 2], [2, 1], 1)
        unflatten_1 = aten.unflatten.int(conv2d_1, 0, [-1, 2, 2])
        unflatten_2 = aten.unflatten.int(lyc_fx.0.layer.weight.w1, 0, [2, -1])
        einsum = aten.einsum('glm,bgm...->bgl...', [unflatten_2, unflatten_1])
        flatten_1 = aten.flatten.using_ints(einsum, -5, -3)
        conv2d_2 = aten.conv2d(x, layer.weight, layer.bias, [2, 1], [1, 2], [2, 1], 2)
        mul_2 = aten.mul.Tensor(flatten_1, lyc_fx.0.strength)
        add_1 = aten.add.Tensor(conv2d_2, mul_2)
        return (add_1)
        """,
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_chain_as_text(name: str) -> None:
    case, adapters, wanted = TEXTS[name]
    expect(text(lyc_fx.lower(adapted(case, *adapters, dtype=torch.float32))), wanted)
