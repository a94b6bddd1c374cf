"""The masked transformers and the samplers that draw meshes from them."""

from mega.models.averaging import AVERAGES, Predicted, check_average, predict_mesh
from mega.models.checkpoint import load_cvqmae, load_into, load_vqmae, read_state, save_model
from mega.models.cvqmae import CVQMAE, load_pretrained_vqmae
from mega.models.masking import draw_hidden, masked_cross_entropy
from mega.models.samplers import (
    Prediction,
    codes_to_decode,
    predict_deterministic,
    sample,
    sample_unconditional,
)
from mega.models.speed import PRECISIONS, speed_up
from mega.models.tokenizer import build_tokenizer, decode_in_parts, load_tokenizer
from mega.models.vqmae import VQMAE

__all__ = [
    "AVERAGES",
    "CVQMAE",
    "PRECISIONS",
    "VQMAE",
    "Predicted",
    "Prediction",
    "build_tokenizer",
    "check_average",
    "codes_to_decode",
    "decode_in_parts",
    "draw_hidden",
    "load_cvqmae",
    "load_into",
    "load_pretrained_vqmae",
    "load_tokenizer",
    "load_vqmae",
    "masked_cross_entropy",
    "predict_deterministic",
    "predict_mesh",
    "read_state",
    "sample",
    "sample_unconditional",
    "save_model",
    "speed_up",
]
