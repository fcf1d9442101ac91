"""What was found of a model's latents: one object, saved as JSON and read again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .scores import Reading


@dataclass(frozen=True)
class Information:
    """What latents tell under noise.

    Attributes:
        noise: Standard deviation of the noise, in multiples of each unit's own.
        bits: Mutual information of sentence and noisy latents, see `mutual_information`.
    """

    noise: float
    bits: float


@dataclass(frozen=True)
class LatentHealth:
    """What was found on a sample of sentences. A unit is one component of a sentence's latents.

    Attributes:
        model_type: `"sentence_vae"` or `"sllm"`.
        documents, sentences, tokens: Size of the sample.
        num_latents, latent_size: Of the model.
        variance: Of each unit's mean over the sentences, latent after latent.
        active_units: See `count_active`.
        spectrum: Eigenvalues of the units' covariance, the largest first.
        effective_dimension: See `effective_dimension`.
        kl: Of each unit, in nats, if the latents are Gaussians: see `kl_per_unit`.
        information: Under noise; Gaussian latents also without any but their own.
        entropy: Bits that tell the sample's sentences apart, which bounds the information.
        reconstruction: Of sentences from their own latents, if the model learned it.
        next_sentence: Prediction of text from predicted latents, if there is a backbone.
    """

    model_type: str
    documents: int
    sentences: int
    tokens: int
    num_latents: int
    latent_size: int
    variance: list[float]
    active_units: int
    spectrum: list[float]
    effective_dimension: float
    kl: list[float] | None
    information: list[Information]
    entropy: float
    reconstruction: list[Reading]
    next_sentence: list[Reading]

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "LatentHealth":
        """Reads what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        information = [Information(**row) for row in values["information"]]
        readings = {
            task: [Reading.from_dict(row) for row in values[task]] for task in ("reconstruction", "next_sentence")
        }
        return cls(**{**values, **readings, "information": information})


def reading_of(readings: list[Reading], latents: str, noise: float = 0.0) -> Reading | None:
    """The reading of these latents, if there is one."""
    return next((reading for reading in readings if (reading.latents, reading.noise) == (latents, noise)), None)
