"""Chains as text. (Those of LoCon and LoKr on linear layers are in test_distribute.)"""

import pytest
import torch
from golden import expect
from lowering import CONV, EVEN, GROUPED, LINEAR, adapted, made
from nets import Case
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter


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
        mul_2 = aten.mul.Tensor(lyc_fx.0.strength, lyc_fx.0.layer.weight.weight)
        add_1 = aten.add.Tensor(mul_2, 1)
        repeat = aten.repeat(add_1, [2])
        reshape_3 = aten.reshape(repeat, [-1, 1, 1])
        mul_3 = aten.mul.Tensor(x, reshape_3)
        conv2d_1 = aten.conv2d(mul_3, layer.weight, layer.bias, [2, 1], [1, 2], [2, 1], 2)
        return (conv2d_1)
        """,
    ),
    "rows: rotated, rescaled, and then the bias": (
        EVEN,
        (made("diag-oft", EVEN, "rescale"),),
        """
        x = input
        transpose_2 = aten.transpose.int(lyc_fx.0.layer.weight.blocks, -1, -2)
        sub_4 = aten.sub.Tensor(lyc_fx.0.layer.weight.blocks, transpose_2)
        linalg_vector_norm_1 = aten.linalg_vector_norm(sub_4)
        add_4 = aten.add.Tensor(linalg_vector_norm_1, 1e-08)
        reciprocal_1 = aten.reciprocal(add_4)
        mul_5 = aten.mul.Tensor(reciprocal_1, 32.0)
        clamp_1 = aten.clamp(mul_5, None, 1.0)
        mul_6 = aten.mul.Tensor(sub_4, clamp_1)
        select_1 = aten.select.int(mul_6, 2, 0)
        ones_like_1 = aten.ones_like(select_1, pin_memory=False)
        diag_embed_1 = aten.diag_embed(ones_like_1)
        sub_5 = aten.sub.Tensor(diag_embed_1, mul_6)
        add_5 = aten.add.Tensor(diag_embed_1, mul_6)
        linalg_solve_1 = aten.linalg_solve(sub_5, add_5)
        sub_6 = aten.sub.Tensor(linalg_solve_1, diag_embed_1)
        mul_7 = aten.mul.Tensor(lyc_fx.0.strength, sub_6)
        add_6 = aten.add.Tensor(diag_embed_1, mul_7)
        transpose_3 = aten.transpose.int(add_6, -1, -2)
        reshape_4 = aten.reshape(lyc_fx.0.layer.weight.rescale, [-1])
        sub_7 = aten.sub.Tensor(reshape_4, 1)
        mul_8 = aten.mul.Tensor(lyc_fx.0.strength, sub_7)
        add_7 = aten.add.Tensor(mul_8, 1)
        linear_1 = aten.linear(x, layer.weight)
        unflatten = aten.unflatten.int(linear_1, -1, [8, 2])
        einsum = aten.einsum('nab,...nb->...na', [transpose_3, unflatten])
        flatten = aten.flatten.using_ints(einsum, -2)
        mul_9 = aten.mul.Tensor(flatten, add_7)
        add_8 = aten.add.Tensor(mul_9, layer.bias)
        return (add_8)
        """,
    ),
    "rotation within groups: each block is a group of a 1×1 convolution": (
        GROUPED,
        (made("diag-oft", GROUPED),),
        """
        x = input
        transpose_2 = aten.transpose.int(lyc_fx.0.layer.weight.blocks, -1, -2)
        sub_3 = aten.sub.Tensor(lyc_fx.0.layer.weight.blocks, transpose_2)
        linalg_vector_norm_1 = aten.linalg_vector_norm(sub_3)
        add_3 = aten.add.Tensor(linalg_vector_norm_1, 1e-08)
        reciprocal_1 = aten.reciprocal(add_3)
        mul_3 = aten.mul.Tensor(reciprocal_1, 24.0)
        clamp_1 = aten.clamp(mul_3, None, 1.0)
        mul_4 = aten.mul.Tensor(sub_3, clamp_1)
        select_1 = aten.select.int(mul_4, 2, 0)
        ones_like_1 = aten.ones_like(select_1, pin_memory=False)
        diag_embed_1 = aten.diag_embed(ones_like_1)
        sub_4 = aten.sub.Tensor(diag_embed_1, mul_4)
        add_4 = aten.add.Tensor(diag_embed_1, mul_4)
        linalg_solve_1 = aten.linalg_solve(sub_4, add_4)
        sub_5 = aten.sub.Tensor(linalg_solve_1, diag_embed_1)
        mul_5 = aten.mul.Tensor(lyc_fx.0.strength, sub_5)
        add_5 = aten.add.Tensor(diag_embed_1, mul_5)
        transpose_3 = aten.transpose.int(add_5, -1, -2)
        conv2d_1 = aten.conv2d(x, layer.weight, None, [1, 1], [1, 1], [1, 1], 2)
        reshape_2 = aten.reshape(transpose_3, [12, 3, 1, 1])
        conv2d_2 = aten.conv2d(conv2d_1, reshape_2, None, [1, 1], [0, 0], [1, 1], 4)
        reshape_3 = aten.reshape(layer.bias, [-1, 1, 1])
        add_6 = aten.add.Tensor(conv2d_2, reshape_3)
        return (add_6)
        """,
    ),
    "input map: one pass through the base layer": (
        LINEAR,
        (made("glora", LINEAR),),
        """
        x = input
        mul_3 = aten.mul.Tensor(lyc_fx.0.strength, 0.6666666666666666)
        mul_4 = aten.mul.Tensor(lyc_fx.0.layer.weight.a2, mul_3)
        mul_5 = aten.mul.Tensor(lyc_fx.0.layer.weight.b2, mul_3)
        cat = aten.cat([mul_4, mul_5], 0)
        linear_6 = aten.linear(x, cat)
        split_with_sizes = aten.split_with_sizes(linear_6, [3, 3], -1)
        getitem = getitem(split_with_sizes, 0)
        getitem_1 = getitem(split_with_sizes, 1)
        linear_2 = aten.linear(getitem, lyc_fx.0.layer.weight.a1)
        add_2 = aten.add.Tensor(x, linear_2)
        linear_3 = aten.linear(add_2, layer.weight, layer.bias)
        linear_5 = aten.linear(getitem_1, lyc_fx.0.layer.weight.b1)
        add_3 = aten.add.Tensor(linear_3, linear_5)
        return (add_3)
        """,
    ),
    "input map beside another adapter, which does not see it: one pass for both": (
        LINEAR,
        (made("locon", LINEAR), made("glora", LINEAR)),
        """
        x = input
        mul_5 = aten.mul.Tensor(lyc_fx.0.strength, 0.6666666666666666)
        mul_6 = aten.mul.Tensor(lyc_fx.1.strength, 0.6666666666666666)
        mul_7 = aten.mul.Tensor(lyc_fx.1.layer.weight.a2, mul_6)
        mul_8 = aten.mul.Tensor(lyc_fx.1.layer.weight.b2, mul_6)
        mul_9 = aten.mul.Tensor(lyc_fx.0.layer.weight.down, mul_5)
        cat = aten.cat([mul_7, mul_8, mul_9], 0)
        linear_8 = aten.linear(x, cat)
        split_with_sizes = aten.split_with_sizes(linear_8, [3, 3, 3], -1)
        getitem = getitem(split_with_sizes, 0)
        getitem_1 = getitem(split_with_sizes, 1)
        getitem_2 = getitem(split_with_sizes, 2)
        linear_2 = aten.linear(getitem, lyc_fx.1.layer.weight.a1)
        add_4 = aten.add.Tensor(x, linear_2)
        linear_3 = aten.linear(add_4, layer.weight, layer.bias)
        linear_5 = aten.linear(getitem_1, lyc_fx.1.layer.weight.b1)
        add_5 = aten.add.Tensor(linear_3, linear_5)
        linear_7 = aten.linear(getitem_2, lyc_fx.0.layer.weight.up)
        add_6 = aten.add.Tensor(add_5, linear_7)
        return (add_6)
        """,
    ),
    "Khatri–Rao": (
        LINEAR,
        (made("loha", LINEAR, rank=2),),
        """
        x = input
        linear_1 = aten.linear(x, layer.weight, layer.bias)
        unsqueeze = aten.unsqueeze(lyc_fx.0.layer.weight.w1_a, 2)
        unsqueeze_1 = aten.unsqueeze(lyc_fx.0.layer.weight.w2_a, 1)
        mul_2 = aten.mul.Tensor(unsqueeze, unsqueeze_1)
        flatten = aten.flatten.using_ints(mul_2, 1)
        unsqueeze_2 = aten.unsqueeze(lyc_fx.0.layer.weight.w1_b, 1)
        unsqueeze_3 = aten.unsqueeze(lyc_fx.0.layer.weight.w2_b, 0)
        mul_3 = aten.mul.Tensor(unsqueeze_2, unsqueeze_3)
        flatten_1 = aten.flatten.using_ints(mul_3, 0, 1)
        mul_4 = aten.mul.Tensor(flatten_1, lyc_fx.0.strength)
        linear_2 = aten.linear(x, mul_4)
        linear_3 = aten.linear(linear_2, flatten)
        add_1 = aten.add.Tensor(linear_1, linear_3)
        return (add_1)
        """,
    ),
    "Kronecker in groups: each has its rows of w1": (
        CONV,
        (made("lokr", CONV),),
        """
        x = input
        conv2d_1 = aten.conv2d(x, layer.weight, layer.bias, [2, 1], [1, 2], [2, 1], 2)
        unflatten = aten.unflatten.int(x, -3, [2, 2, 3])
        flatten = aten.flatten.using_ints(unflatten, 0, -4)
        mul_1 = aten.mul.Tensor(lyc_fx.0.layer.weight.w2, lyc_fx.0.strength)
        conv2d_2 = aten.conv2d(flatten, mul_1, None, [2, 1], [1, 2], [2, 1])
        unflatten_1 = aten.unflatten.int(conv2d_2, 0, [-1, 2, 2])
        unflatten_2 = aten.unflatten.int(lyc_fx.0.layer.weight.w1, 0, [2, -1])
        einsum = aten.einsum('glm,bgm...->bgl...', [unflatten_2, unflatten_1])
        flatten_1 = aten.flatten.using_ints(einsum, -5, -3)
        add_1 = aten.add.Tensor(conv2d_1, flatten_1)
        return (add_1)
        """,
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_chain_as_text(name: str) -> None:
    case, adapters, wanted = TEXTS[name]
    expect(text(lyc_fx.lower(adapted(case, *adapters, dtype=torch.float32))), wanted)
