"""The published files' parameter names, turned into those that the modules here have."""

import re

from torch import Tensor

WAVLM_NAMES = {  # in original names (regular expressions): in transformers' names
    r"^mask_emb$": "masked_spec_embed",
    r"^layer_norm\.": "feature_projection.layer_norm.",
    r"^post_extract_proj\.": "feature_projection.projection.",
    r"(conv_layers\.\d)\.0\.": r"\1.conv.",
    r"(conv_layers\.0)\.2\.": r"\1.layer_norm.",
    r"\.pos_conv\.0\.": ".pos_conv_embed.conv.",
    r"\.weight_g$": ".parametrizations.weight.original0",
    r"\.weight_v$": ".parametrizations.weight.original1",
    r"\.self_attn\.": ".attention.",
    r"\.grep_linear\.": ".gru_rel_pos_linear.",
    r"\.grep_a$": ".gru_rel_pos_const",
    r"\.relative_attention_bias\.": ".rel_attn_embed.",
    r"\.self_attn_layer_norm\.": ".layer_norm.",
    r"\.fc1\.": ".feed_forward.intermediate_dense.",
    r"\.fc2\.": ".feed_forward.output_dense.",
}


def from_published_wavlm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under WavLM's original names, renamed to `transformers`' names."""
    for original, renamed in WAVLM_NAMES.items():
        weights = {re.sub(original, renamed, name): w for name, w in weights.items()}
    return weights


def from_published_beats(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights without the AudioSet head and the copies of layer 0's bias table."""
    surplus = re.compile(r"predictor\.|.*layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.")
    return {name: tensor for name, tensor in weights.items() if not surplus.match(name)}
