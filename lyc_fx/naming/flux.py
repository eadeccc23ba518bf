"""Flux.1: the original names by Black Forest Labs, with fused projections, and those of diffusers."""

from lyc_fx.naming.scheme import Dialect, Rule, Scheme, rule

_STEM = (
    rule("img_in", "x_embedder"),
    rule("txt_in", "context_embedder"),
    rule("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    rule("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    rule("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    rule("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    rule("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    rule("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    rule("final_layer.linear", "proj_out"),
    rule("final_layer.adaLN_modulation.1", "norm_out.linear", continuous=True),
)


def _double(stream: str, qkv: tuple[str, str, str], out: str, feed: str, norm: str) -> tuple[Rule, ...]:
    """Return the rules for one of the two streams of a double block."""
    theirs, ours = f"double_blocks.{{}}.{stream}", "transformer_blocks.{}"
    return (
        rule(f"{theirs}_attn.qkv", *(f"{ours}.attn.{name}" for name in qkv)),
        rule(f"{theirs}_attn.proj", f"{ours}.attn.{out}"),
        rule(f"{theirs}_mlp.0", f"{ours}.{feed}.net.0.proj"),
        rule(f"{theirs}_mlp.2", f"{ours}.{feed}.net.2"),
        rule(f"{theirs}_mod.lin", f"{ours}.{norm}.linear"),
    )


_SINGLE = "single_transformer_blocks.{}"
_SINGLE_BLOCK = (
    rule(
        "single_blocks.{}.linear1",
        *(f"{_SINGLE}.attn.{name}" for name in ("to_q", "to_k", "to_v")),
        f"{_SINGLE}.proj_mlp",
        inner=(1, 1, 1),
    ),
    # XLabs adapts q, k and v of a single block together, and leaves the MLP's input alone.
    rule("single_blocks.{}.linear1", "single_blocks.{}.qkv", "", inner=(3,), dialect=Dialect.spelling),
    rule(
        "single_blocks.{}.qkv",
        *(f"{_SINGLE}.attn.{name}" for name in ("to_q", "to_k", "to_v")),
        dialect=Dialect.spelling,
    ),
    rule("single_blocks.{}.linear2", f"{_SINGLE}.proj_out"),
    rule("single_blocks.{}.modulation.lin", f"{_SINGLE}.norm.linear"),
)

FLUX = Scheme(
    (
        *_STEM,
        *_double("img", ("to_q", "to_k", "to_v"), "to_out.0", "ff", "norm1"),
        *_double("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context", "norm1_context"),
        *_SINGLE_BLOCK,
    ),
    kind="transformer",
    marks=(
        ("double_blocks.{}.img_attn.qkv",),
        ("single_blocks.{}.linear1",),
        (f"{_SINGLE}.attn.to_q", f"{_SINGLE}.proj_mlp"),
    ),
)
"""`linear1` is q, k, v and the MLP's input; shift and scale of the last layer are swapped in diffusers"""
