"""Names of RIN's variables by the attributes that lead to them, which official checkpoints (``tf.train.Checkpoint``) keep."""

from __future__ import annotations

import re

# Attributes of the official layers -> what the layers are named.
PATTERNS = (
    (r"\b(read|read_cond|write)_units/(\d+)/dec_layers/0/", r"\1_unit_\2/transformer_decoder_layer/"),
    (r"\bconv_units/(\d+)/", r"conv_units_\1/"),
    (r"\blatent_processing_units/(\d+)/enc_layers/0/", r"latent_processing_unit\1/transformer_encoder/"),
    (r"\blatent_processing_units/(\d+)/enc_layers/(\d+)/", r"latent_processing_unit\1/transformer_encoder_\2/"),
    (r"/cross_ln/", "/cross_mha/ln/"),
    (r"(?<!/cross_mha)/enc_ln/", "/cross_mha/enc_ln/"),
    (r"/mha_ln/", "/mha/ln/"),
    (r"/_(query|key|value)_dense/", r"/\1/"),
    (r"/_output_dense/", "/attention_output/"),
    (r"/mlp_layers/0/", "/ffn/"),
    (r"/layernorms/0/", "/ffn/ln/"),
    (r"^time_emb/dense_", "time_emb/dense"),
    # What lies in no layer is kept by its whole name, as of TensorFlow 2.21, or else by its attribute.
    (r"^(latent|tape)_pos_emb$", r"\1_pos_emb/kernel/vis_pos_embedding"),
    (r"^(latent|tape)_pos_emb_res$", r"\1_pos_emb_res/kernel"),
)


def variable_name(path: str) -> str:
    """Name of a variable within the network.

    Args:
        path: Attributes that lead to it from the network, joined by slashes; a name is left as it is.
    """
    for pattern, replacement in PATTERNS:
        path = re.sub(pattern, replacement, path)
    return path
