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
        mul = aten.mul.Tensor(lyc_fx.0.strength, lyc_fx.0.layer.weight.weight)
        add = aten.add.Tensor(mul, 1)
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
        transpose = aten.transpose.int(lyc_fx.0.layer.weight.blocks, -1, -2)
        sub = aten.sub.Tensor(lyc_fx.0.layer.weight.blocks, transpose)
        linalg_vector_norm = aten.linalg_vector_norm(sub)
        add = aten.add.Tensor(linalg_vector_norm, 1e-08)
        reciprocal = aten.reciprocal(add)
        mul = aten.mul.Tensor(reciprocal, 32.0)
        clamp = aten.clamp(mul, None, 1.0)
        mul_1 = aten.mul.Tensor(sub, clamp)
        select = aten.select.int(mul_1, 2, 0)
        ones_like = aten.ones_like(select, pin_memory=False)
        diag_embed = aten.diag_embed(ones_like)
        sub_1 = aten.sub.Tensor(diag_embed, mul_1)
        add_1 = aten.add.Tensor(diag_embed, mul_1)
        linalg_solve = aten.linalg_solve(sub_1, add_1)
        sub_2 = aten.sub.Tensor(linalg_solve, diag_embed)
        mul_2 = aten.mul.Tensor(lyc_fx.0.strength, sub_2)
        add_2 = aten.add.Tensor(diag_embed, mul_2)
        transpose_1 = aten.transpose.int(add_2, -1, -2)
        sub_3 = aten.sub.Tensor(lyc_fx.0.layer.weight.rescale, 1)
        mul_3 = aten.mul.Tensor(lyc_fx.0.strength, sub_3)
        add_3 = aten.add.Tensor(mul_3, 1)
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
        transpose = aten.transpose.int(lyc_fx.0.layer.weight.blocks, -1, -2)
        sub = aten.sub.Tensor(lyc_fx.0.layer.weight.blocks, transpose)
        linalg_vector_norm = aten.linalg_vector_norm(sub)
        add = aten.add.Tensor(linalg_vector_norm, 1e-08)
        reciprocal = aten.reciprocal(add)
        mul = aten.mul.Tensor(reciprocal, 24.0)
        clamp = aten.clamp(mul, None, 1.0)
        mul_1 = aten.mul.Tensor(sub, clamp)
        select = aten.select.int(mul_1, 2, 0)
        ones_like = aten.ones_like(select, pin_memory=False)
        diag_embed = aten.diag_embed(ones_like)
        sub_1 = aten.sub.Tensor(diag_embed, mul_1)
        add_1 = aten.add.Tensor(diag_embed, mul_1)
        linalg_solve = aten.linalg_solve(sub_1, add_1)
        sub_2 = aten.sub.Tensor(linalg_solve, diag_embed)
        mul_2 = aten.mul.Tensor(lyc_fx.0.strength, sub_2)
        add_2 = aten.add.Tensor(diag_embed, mul_2)
        transpose_1 = aten.transpose.int(add_2, -1, -2)
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
        mul = aten.mul.Tensor(lyc_fx.0.strength, 0.6666666666666666)
        mul_2 = aten.mul.Tensor(lyc_fx.0.layer.weight.b2, mul)
        linear_1 = aten.linear(x, mul_2)
        linear_2 = aten.linear(linear_1, lyc_fx.0.layer.weight.b1)
        mul_3 = aten.mul.Tensor(lyc_fx.0.layer.weight.a2, mul)
        linear_3 = aten.linear(x, mul_3)
        linear_4 = aten.linear(linear_3, lyc_fx.0.layer.weight.a1)
        add_2 = aten.add.Tensor(x, linear_4)
        linear_5 = aten.linear(add_2, layer.weight, layer.bias)
        add_3 = aten.add.Tensor(linear_5, linear_2)
        return (add_3)
        """,
    ),
    "input map beside another adapter: a second pass, which does not see that one": (
        LINEAR,
        (made("locon", LINEAR), made("glora", LINEAR)),
        """
        x = input
        mul = aten.mul.Tensor(lyc_fx.0.strength, 0.6666666666666666)
        mul_2 = aten.mul.Tensor(lyc_fx.1.strength, 0.6666666666666666)
        mul_4 = aten.mul.Tensor(lyc_fx.1.layer.weight.b2, mul_2)
        linear_1 = aten.linear(x, mul_4)
        linear_2 = aten.linear(linear_1, lyc_fx.1.layer.weight.b1)
        mul_5 = aten.mul.Tensor(lyc_fx.1.layer.weight.a2, mul_2)
        linear_3 = aten.linear(x, mul_5)
        linear_4 = aten.linear(linear_3, lyc_fx.1.layer.weight.a1)
        mul_6 = aten.mul.Tensor(lyc_fx.0.layer.weight.down, mul)
        linear_7 = aten.linear(x, mul_6)
        linear_8 = aten.linear(linear_7, lyc_fx.0.layer.weight.up)
        linear_9 = aten.linear(x, layer.weight, layer.bias)
        add_5 = aten.add.Tensor(linear_9, linear_8)
        linear_6 = aten.linear(linear_4, layer.weight)
        add_3 = aten.add.Tensor(linear_6, linear_2)
        add_4 = aten.add.Tensor(add_5, add_3)
        return (add_4)
        """,
    ),
    "Khatri–Rao": (
        LINEAR,
        (made("loha", LINEAR, rank=2),),
        """
        x = input
        unsqueeze = aten.unsqueeze(lyc_fx.0.layer.weight.w1_b, 1)
        unsqueeze_1 = aten.unsqueeze(lyc_fx.0.layer.weight.w2_b, 0)
        mul_3 = aten.mul.Tensor(unsqueeze, unsqueeze_1)
        flatten = aten.flatten.using_ints(mul_3, 0, 1)
        unsqueeze_2 = aten.unsqueeze(lyc_fx.0.layer.weight.w1_a, 2)
        unsqueeze_3 = aten.unsqueeze(lyc_fx.0.layer.weight.w2_a, 1)
        mul_4 = aten.mul.Tensor(unsqueeze_2, unsqueeze_3)
        flatten_1 = aten.flatten.using_ints(mul_4, 1, 2)
        mul_5 = aten.mul.Tensor(flatten, lyc_fx.0.strength)
        linear_1 = aten.linear(x, mul_5)
        linear_2 = aten.linear(linear_1, flatten_1)
        linear_3 = aten.linear(x, layer.weight, layer.bias)
        add_1 = aten.add.Tensor(linear_3, linear_2)
        return (add_1)
        """,
    ),
    "Kronecker in groups: each has its rows of w1": (
        CONV,
        (made("lokr", CONV),),
        """
        x = input
        mul_2 = aten.mul.Tensor(lyc_fx.0.layer.weight.w2, lyc_fx.0.strength)
        unflatten = aten.unflatten.int(x, -3, [2, 2, 3])
        flatten = aten.flatten.using_ints(unflatten, 0, -4)
        conv2d_1 = aten.conv2d(flatten, mul_2, None, [2, 1], [1, 2], [2, 1], 1)
        unflatten_1 = aten.unflatten.int(conv2d_1, 0, [-1, 2, 2])
        unflatten_2 = aten.unflatten.int(lyc_fx.0.layer.weight.w1, 0, [2, -1])
        einsum = aten.einsum('glm,bgm...->bgl...', [unflatten_2, unflatten_1])
        flatten_1 = aten.flatten.using_ints(einsum, -5, -3)
        conv2d_2 = aten.conv2d(x, layer.weight, layer.bias, [2, 1], [1, 2], [2, 1], 2)
        add_1 = aten.add.Tensor(conv2d_2, flatten_1)
        return (add_1)
        """,
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_chain_as_text(name: str) -> None:
    case, adapters, wanted = TEXTS[name]
    expect(text(lyc_fx.lower(adapted(case, *adapters, dtype=torch.float32))), wanted)
