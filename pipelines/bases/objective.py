"""The training loss: noisy latents, the target that is predicted from them, and the weight of each noise level.

In: clean latents (b, c, h, w), noise of the same shape, timesteps (b,). Out: noisy latents, targets, weights (b,).
`NoiseSchedule` is diffusion with the base's own alphas, `FlowSchedule` flow matching with the base's own shift; both
have one interface (`Schedule`) and do not depend on architecture or method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class Schedule(Protocol):
    """The methods that the training loop uses."""

    def __len__(self) -> int: ...

    def timesteps(self, places: torch.Tensor) -> torch.Tensor:
        """Timesteps (n,) at positions `places` (n,) of the schedule, from 0 (clean) to 1 (noise, excluded). Training
        draws uniform positions.
        """

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor: ...

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor: ...

    def weights(self, timesteps: torch.Tensor, snr_gamma: float | None) -> torch.Tensor: ...

    def losses(
        self,
        predicted: torch.Tensor,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        snr_gamma: float | None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class NoiseSchedule:
    """`alphas` (T,): the share of signal energy at each timestep (alpha-bar of Ho et al. 2020, eq. 4), float32."""

    alphas: torch.Tensor
    prediction: str  # "epsilon" | "v_prediction" | "sample"

    def __len__(self) -> int:
        return len(self.alphas)

    def timesteps(self, places: torch.Tensor) -> torch.Tensor:
        return (places * len(self)).long().clamp(max=len(self) - 1)

    def _parts(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        signal = self.alphas[timesteps][:, None, None, None]
        return signal.sqrt(), (1 - signal).sqrt()

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        signal, blur = self._parts(timesteps)
        return signal * latents + blur * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the denoiser should predict: the noise, the velocity (Salimans & Ho 2022, appendix D) or the picture."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "v_prediction":
            signal, blur = self._parts(timesteps)
            return signal * noise - blur * latents
        if self.prediction == "sample":
            return latents
        raise ValueError(f"unknown prediction type {self.prediction}")

    def weights(self, timesteps: torch.Tensor, snr_gamma: float | None) -> torch.Tensor:
        """Min-SNR weight of each timestep (Hang et al. 2023), (b,). `None` = 1 everywhere.

        A weight of min(snr, gamma) on the picture's error is a weight on the predicted quantity of min(snr, gamma)/snr
        for noise, min(snr, gamma)/(snr + 1) for velocity, min(snr, gamma) for the picture. Calculated without a
        division by the SNR, so that a schedule that ends in pure noise (SNR 0) gives no NaN, and a clean start no
        infinity.
        """
        signal = self.alphas[timesteps].double()
        if snr_gamma is None:
            return torch.ones_like(signal, dtype=torch.float32)
        blur = 1 - signal
        # snr = signal/blur, so min(snr, gamma) = min(signal, gamma * blur)/blur and snr + 1 = 1/blur
        clipped = torch.minimum(signal, snr_gamma * blur)
        if self.prediction == "v_prediction":
            weight = clipped
        elif self.prediction == "epsilon":
            weight = torch.where(signal > 0, clipped / signal.clamp(min=1e-20), torch.ones_like(signal))
        else:
            weight = clipped / blur.clamp(min=1e-20)
        return weight.float()

    def losses(
        self,
        predicted: torch.Tensor,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        snr_gamma: float | None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Weighted squared error of each sample, (b,), in float32. `mask` (b, 1, h, w): the weight of each position."""
        return _losses(self, predicted, latents, noise, timesteps, snr_gamma, mask)


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow (Liu et al. 2022; Esser et al. 2024): a straight line from the picture to the noise.

    A timestep is `count * sigma`, where sigma is the share of noise. `shift` moves uniform positions towards noise
    (Esser et al. 2024, eq. 23), as the base's own sampler does.
    """

    count: int
    shift: float

    def __len__(self) -> int:
        return self.count

    def timesteps(self, places: torch.Tensor) -> torch.Tensor:
        # 1 / count is the base's cleanest level; without noise there is nothing to predict
        levels = places.clamp(min=1 / self.count)
        return self.count * self.shift * levels / (1 + (self.shift - 1) * levels)

    def _sigmas(self, timesteps: torch.Tensor) -> torch.Tensor:
        return (timesteps / self.count)[:, None, None, None]

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        sigmas = self._sigmas(timesteps)
        return (1 - sigmas) * latents + sigmas * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The velocity from the picture to the noise, the same at every timestep."""
        return noise - latents

    def weights(self, timesteps: torch.Tensor, snr_gamma: float | None) -> torch.Tensor:
        """Min-SNR weight of each timestep, (b,). `None` = 1 everywhere, which is what flow bases are trained with.

        The picture's error is sigma^2 times the velocity's, and the SNR is ((1 - sigma) / sigma)^2, so min(snr, gamma)
        on the picture is min((1 - sigma)^2, gamma * sigma^2) on the velocity.
        """
        sigmas = (timesteps / self.count).double()
        if snr_gamma is None:
            return torch.ones_like(sigmas, dtype=torch.float32)
        return torch.minimum((1 - sigmas) ** 2, snr_gamma * sigmas**2).float()

    def losses(
        self,
        predicted: torch.Tensor,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        snr_gamma: float | None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Weighted squared error of each sample, (b,), in float32. `mask` (b, 1, h, w): the weight of each position."""
        return _losses(self, predicted, latents, noise, timesteps, snr_gamma, mask)


def _losses(
    schedule: Schedule,
    predicted: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_gamma: float | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    errors = (predicted.float() - schedule.target(latents, noise, timesteps)).square()
    error = (errors if mask is None else errors * mask).mean((1, 2, 3))
    return error * schedule.weights(timesteps, snr_gamma)
