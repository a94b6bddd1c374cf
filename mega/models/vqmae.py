"""VQMAE: the masked autoencoder of mesh tokens alone, a prior over human meshes. MEGA starts from its weights."""

from torch import Tensor, nn

from mega.models.transformer import MaskedDecoder, MaskedEncoder, fill_in


class VQMAE(nn.Module):
    """Predicts hidden mesh tokens from visible ones.

    Args:
        n_tokens: N, tokens a mesh.
        codebook_size: K.
        dim: D, channels of encoder and decoder.
        encoder_depth, encoder_heads, decoder_depth, decoder_heads: blocks and attention heads.
        learned_positions: learned position embeddings; False for fixed sinusoidal ones.
        init: initial values, one of `transformer.INITS`.

    The defaults are the published size (MEGA, CVPR 2025).
    """

    def __init__(
        self,
        n_tokens: int = 54,
        codebook_size: int = 512,
        dim: int = 1024,
        encoder_depth: int = 12,
        encoder_heads: int = 4,
        decoder_depth: int = 4,
        decoder_heads: int = 4,
        learned_positions: bool = True,
        init: str = "scaled",
    ):
        super().__init__()
        self.n_tokens, self.codebook_size = n_tokens, codebook_size
        self.encoder = MaskedEncoder(
            n_tokens, codebook_size, dim, encoder_depth, encoder_heads, learned_positions, init
        )
        self.decoder = MaskedDecoder(
            n_tokens, codebook_size, dim, decoder_depth, decoder_heads, learned_positions, init
        )

    def forward(self, tokens: Tensor, hidden: Tensor, only_hidden: bool = False) -> Tensor:
        """Tokens (B, N) int64 and hidden (B, N) bool -> logits (B, N, K) for every place, hidden or not.

        With `only_hidden` those of visible places are NaN, and cost nothing.
        """
        return fill_in(self.encoder, self.decoder, tokens, hidden, only_hidden=only_hidden)
