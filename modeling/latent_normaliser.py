"""The scale of latents: what predicts them works on numbers of which each is centred and has the spread of a standard
normal, however large the encoder makes them (Large Concept Models, arXiv 2412.08821, section 2.3)."""

import torch
from torch import nn

# Of a standard normal, the distance between its quartiles.
NORMAL_QUARTILES = 1.349
# Where most sentences are alike, the quartiles lie close together, however far away the others are: then so much of
# the standard deviation counts. And a component that hardly varies stays as small as it is: what it says is noise.
LEAST_DEVIATIONS = 0.2
LEAST_SCALE = 1e-4


class LatentNormaliser(nn.Module):
    """Centres each component of a latent by its median and divides it by its spread, both as seen in training.

    The spread is the distance between the quartiles, which a few extreme sentences do not change. Both are buffers,
    and travel with the checkpoint.

    Args:
        shape: Of the latents of one sentence, `(num_latents, latent_size)`.
        momentum: Weight of a new batch against all before. The first batch counts alone.
    """

    def __init__(self, shape: tuple[int, int], momentum: float = 0.05):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def observe(self, latents: torch.Tensor) -> None:
        """Takes in the latents of a batch, `(C, num_latents, latent_size)`. Fewer than four say nothing of spread."""
        if len(latents) < 4:
            return
        quartiles = torch.tensor([0.25, 0.5, 0.75], device=latents.device)
        low, median, high = torch.quantile(latents.float(), quartiles, dim=0)
        deviation = latents.float().std(0)
        scale = torch.maximum((high - low) / NORMAL_QUARTILES, LEAST_DEVIATIONS * deviation).clamp(min=LEAST_SCALE)
        weight = torch.where(self.batches_seen == 0, 1.0, self.momentum)
        self.center.lerp_(median.to(self.center.dtype), weight)
        self.scale.lerp_(scale.to(self.scale.dtype), weight)
        self.batches_seen += 1

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """`(…, num_latents, latent_size)` latents as standard ones, in float32."""
        return (latents.float() - self.center.float()) / self.scale.float()

    def restore(self, standard: torch.Tensor) -> torch.Tensor:
        """The latents that such standard ones, `(…, num_latents, latent_size)`, stand for."""
        return standard * self.scale.float() + self.center.float()
