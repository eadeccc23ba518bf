"""Projections that some models have fused and others as separate layers, in any module.

In a fused weight, the rows of queries are as many as the inputs of the attention's output layer, and the rest is
divided equally between keys and values. Without such an output layer beside it, all parts are taken to be equal, and
an adapter with other sizes is refused.
"""

from lyc_fx.naming.scheme import Dialect, Rule, Scheme, rule

_OUTPUTS = ("o_proj", "out_proj", "to_out.0", "to_out", "out", "proj")


def _fused(whole: str, *members: str) -> Rule:
    queries = len(members) == 3 and "q" in members[0]
    return rule(whole, *members, dialect=Dialect.spelling, readers=_OUTPUTS if queries else ())


FUSED = Scheme(
    (
        _fused("to_qkv", "to_q", "to_k", "to_v"),
        _fused("to_kv", "to_k", "to_v"),
        _fused("to_added_qkv", "add_q_proj", "add_k_proj", "add_v_proj"),
        _fused("qkv_proj", "q_proj", "k_proj", "v_proj"),
        _fused("in_proj", "q_proj", "k_proj", "v_proj"),
        _fused("gate_up_proj", "gate_proj", "up_proj"),
        _fused("attention.qkv", "attention.to_q", "attention.to_k", "attention.to_v"),
        _fused("attention.out", "attention.to_out.0"),
        _fused("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    ),
    anywhere=True,
)
"""diffusers (`fuse_qkv_projections`), Lumina, Z-Image, Phi, Llama, `nn.MultiheadAttention` and others.

Not `query_key_value` of BLOOM, Falcon, GPT-NeoX and Persimmon: its rows are interleaved by heads.
"""
FUSIONS = tuple((each.original, each.diffusers) for each in FUSED.rules if len(each.diffusers) > 1)
"""The fused modules, each with its members in the order of their rows"""
INTERLEAVED = "query_key_value"
"""A fused module whose rows cannot be split without knowing the number of heads"""
