"""Decoders that attend to an encoder's output: in every layer beside their own, or in layers of its own."""

from __future__ import annotations

from kvtool.catalog.families.family import MAX_LAYERS, Shape, derived_head_dim, grouped_attention
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import CrossAttention, FullAttention, Layer

_ENCODER = {"encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "encoder_layerdrop", "num_hidden_layers"}
_OF_ALL_LAYERS = {"num_key_value_heads", "share_encoder_decoder_embeddings"}
_MLLAMA_CROSS_LAYERS = [3, 8, 13, 18, 23, 28, 33, 38]


def decoder_shape(fields: Fields) -> Shape:
    """Whisper, BART and their kin: sizes of the decoder; the encoder keeps no cache."""
    fields.read |= _ENCODER
    return Shape(
        num_layers=fields.integer("decoder_layers", high=MAX_LAYERS),
        hidden_size=fields.integer("d_model", "hidden_size"),
        num_heads=fields.integer("decoder_attention_heads", high=1 << 16),
    )


def every_layer_crosses(fields: Fields, shape: Shape) -> list[Layer]:
    """As many KV heads as query heads, of the decoder's own tokens and of a full encoder: 1500 audio frames in Whisper,
    else as many tokens as there are positions.
    """
    fields.read |= _OF_ALL_LAYERS
    head_dim = derived_head_dim(fields, shape)
    encoder_tokens = fields.optional_integer("max_source_positions") or fields.integer("max_position_embeddings")
    return _crossing(shape, head_dim, encoder_tokens)


def t5_shape(fields: Fields) -> Shape:
    """T5: `num_layers` counts the encoder's layers, and the decoder's too where nothing else does."""
    encoder = fields.integer("num_layers", "num_hidden_layers", high=MAX_LAYERS)
    return Shape(
        num_layers=fields.optional_integer("num_decoder_layers", high=MAX_LAYERS) or encoder,
        hidden_size=fields.integer("d_model", "hidden_size"),
        num_heads=fields.integer("num_heads", "num_attention_heads", high=1 << 16),
    )


def t5(fields: Fields, shape: Shape) -> list[Layer]:
    """T5: heads of `d_kv`; relative positions set no limit, so the encoder counts by its config's `n_positions`."""
    return _crossing(shape, fields.integer("d_kv", high=1 << 16), fields.integer("n_positions"))


def _crossing(shape: Shape, head_dim: int, encoder_tokens: int) -> list[Layer]:
    heads = shape.num_heads
    own = FullAttention(kv_heads=heads, k_head_dim=head_dim, v_head_dim=head_dim)
    cross = CrossAttention(kv_heads=heads, k_head_dim=head_dim, v_head_dim=head_dim, encoder_tokens=encoder_tokens)
    return [Layer(cache=own, cross=cross)] * shape.num_layers


def mllama(fields: Fields, shape: Shape) -> list[Layer]:
    """Llama 3.2 Vision: the layers of `cross_attention_layers` attend to one image's tiles, and to nothing else."""
    full = grouped_attention(fields, shape)
    layers = range(shape.num_layers)
    given = fields.integers("cross_attention_layers", high=shape.num_layers - 1)
    at = {layer for layer in _MLLAMA_CROSS_LAYERS if layer < shape.num_layers} if given is None else set(given)
    cross = CrossAttention(
        kv_heads=full.kv_heads,
        k_head_dim=full.k_head_dim,
        v_head_dim=full.v_head_dim,
        encoder_tokens=_image_tokens(fields),
    )
    return [Layer(cache=cross if layer in at else full) for layer in layers]


def _image_tokens(fields: Fields) -> int:
    """Tokens of one image: every tile has a class token and its patches, and all tiles are kept, used or not."""
    vision = fields.outer.nested("vision_config") if fields.outer else None
    if vision is None:
        raise fields.error("field 'vision_config' is missing: it says how many tokens an image has")
    side, patch = vision.integer("image_size"), vision.integer("patch_size")
    return vision.integer("max_num_tiles") * ((side // patch) ** 2 + 1)
