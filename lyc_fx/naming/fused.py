"""Projections that one model has fused and another apart, wherever they stand.

Where the model is the fused one, its rows are taken to be equal parts; an adapter for other parts does not fit, and
is refused.
"""

from lyc_fx.naming.scheme import Dialect, Rule, Scheme, rule


def _fused(whole: str, *members: str) -> Rule:
    return rule(whole, *members, dialect=Dialect.spelling)


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
"""The fused ones, and their members in the order of their rows"""
INTERLEAVED = "query_key_value"
"""A fused weight whose rows nobody can split without the number of heads"""
