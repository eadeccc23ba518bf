"""Wan 2.1 and 2.2: the original names, and those of diffusers."""

from lyc_fx.naming.scheme import Scheme, rule

_PARTS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "k_img": "add_k_proj", "v_img": "add_v_proj"}

_NORMS = {"norm_q": "norm_q", "norm_k": "norm_k", "norm_k_img": "norm_added_k"}

WAN = Scheme(
    (
        *(
            rule(f"{block}.{{}}.{theirs}_attn.{part}", f"{block}.{{}}.{ours}.{name}")
            for block in ("blocks", "vace_blocks")
            for theirs, ours in (("self", "attn1"), ("cross", "attn2"))
            for part, name in _PARTS.items()
        ),
        *(
            rule(f"blocks.{{}}.{theirs}_attn.{norm}", f"blocks.{{}}.{ours}.{name}")
            for theirs, ours in (("self", "attn1"), ("cross", "attn2"))
            for norm, name in _NORMS.items()
        ),
        rule("blocks.{}.ffn.0", "blocks.{}.ffn.net.0.proj"),
        rule("blocks.{}.ffn.2", "blocks.{}.ffn.net.2"),
        rule("blocks.{}.norm3", "blocks.{}.norm2"),
        rule("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
        rule("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
        rule("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
        rule("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
        rule("time_projection.1", "condition_embedder.time_proj"),
        rule("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
        rule("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
        rule("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
        rule("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
        rule("head.head", "proj_out"),
    ),
    bare=(("blocks.{}.modulation", "blocks.{}.scale_shift_table"), ("head.modulation", "scale_shift_table")),
    kind="transformer",
    marks=(("blocks.{}.self_attn.q", "blocks.{}.cross_attn.q"), ("blocks.{}.attn1.to_q", "blocks.{}.attn2.to_q")),
)
"""Each block has self-attention, cross-attention (with two more projections for images) and a feedforward layer"""
