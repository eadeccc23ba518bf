"""Stable Diffusion 3: the original names by Stability AI, with fused projections, and those of diffusers."""

from lyc_fx.naming.scheme import Rule, Scheme, rule

_OURS = "transformer_blocks.{}"
_STEM = (
    rule("x_embedder.proj", "pos_embed.proj"),
    rule("context_embedder", "context_embedder"),
    rule("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    rule("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    rule("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    rule("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    rule("final_layer.linear", "proj_out"),
    rule("final_layer.adaLN_modulation.1", "norm_out.linear", continuous=True),
)


def _stream(stream: str, qkv: tuple[str, str, str], out: str, feed: str, norm: str) -> tuple[Rule, ...]:
    """Return the rules for one stream of a joint block.

    In the last block, the adaLN of the context has only shift and scale.
    """
    theirs = f"joint_blocks.{{}}.{stream}"
    return (
        rule(f"{theirs}.attn.qkv", *(f"{_OURS}.attn.{name}" for name in qkv)),
        rule(f"{theirs}.attn.proj", f"{_OURS}.attn.{out}"),
        rule(f"{theirs}.mlp.fc1", f"{_OURS}.{feed}.net.0.proj"),
        rule(f"{theirs}.mlp.fc2", f"{_OURS}.{feed}.net.2"),
        rule(f"{theirs}.adaLN_modulation.1", f"{_OURS}.{norm}.linear", continuous=True),
    )


SD3 = Scheme(
    (
        *_STEM,
        *_stream("x_block", ("to_q", "to_k", "to_v"), "to_out.0", "ff", "norm1"),
        *_stream(
            "context_block", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context", "norm1_context"
        ),
        rule("joint_blocks.{}.x_block.attn2.qkv", *(f"{_OURS}.attn2.{name}" for name in ("to_q", "to_k", "to_v"))),
        rule("joint_blocks.{}.x_block.attn2.proj", f"{_OURS}.attn2.to_out.0"),
    ),
    kind="transformer",
    marks=(("joint_blocks.{}.x_block.attn.qkv",), ("pos_embed.proj", f"{_OURS}.attn.add_q_proj")),
)
"""SD 3 and 3.5; `attn2` is the second attention of 3.5 medium"""
