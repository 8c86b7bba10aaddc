"""The diffusion objective: noisy latents, what is predicted from them, and how much each noise level counts.

In: clean latents (b, c, h, w), noise of the same shape, timesteps (b,). Out: noisy latents, targets, weights (b,).
`NoiseSchedule` holds the base's own alphas; nothing here knows an architecture or a method.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NoiseSchedule:
    """`alphas` (T,): the share of signal energy at each timestep (alpha-bar of Ho et al. 2020, eq. 4), float32."""

    alphas: torch.Tensor
    prediction: str  # "epsilon" | "v_prediction" | "sample"

    def __len__(self) -> int:
        return len(self.alphas)

    def _parts(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        signal = self.alphas[timesteps][:, None, None, None]
        return signal.sqrt(), (1 - signal).sqrt()

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        signal, blur = self._parts(timesteps)
        return signal * latents + blur * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the denoiser should say: the noise, the velocity (Salimans & Ho 2022, appendix D) or the picture."""
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

        Weighting the picture's error by min(snr, gamma) is, on the predicted quantity, min(snr, gamma)/snr for noise,
        min(snr, gamma)/(snr + 1) for velocity, min(snr, gamma) for the picture. Written without a division by the SNR,
        so that a schedule that ends in pure noise (SNR 0) gives no NaN, and one that starts clean no infinity.
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
        """Weighted squared error of each sample, (b,), in float32. `mask` (b, 1, h, w) weighs the places."""
        errors = (predicted.float() - self.target(latents, noise, timesteps)).square()
        error = (errors if mask is None else errors * mask).mean((1, 2, 3))
        return error * self.weights(timesteps, snr_gamma)
