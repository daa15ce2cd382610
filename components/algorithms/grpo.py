"""Group-relative policy optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_launch.errors import ComponentError

if TYPE_CHECKING:
    from torch import Tensor


class GRPO:
    """GRPO (Shao et al. 2024, arXiv:2402.03300) with the asymmetric clip of DAPO (Yu et al. 2025, arXiv:2503.14476).

    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
    normalize_std: divide by the group's sample standard deviation; off gives Dr. GRPO (Liu et al. 2025,
        arXiv:2503.20783).
    """

    STD_FLOOR = 1e-6
    MAX_LOG_RATIO = 20.0

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, normalize_std: bool = True) -> None:
        if not (0 < clip_low < 1 and clip_high > 0):
            raise ComponentError(
                f"GRPO: clip_low={clip_low}, clip_high={clip_high}: need 0 < clip_low < 1 and clip_high > 0"
            )
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.normalize_std = normalize_std

    def advantages(self, rewards_N: Tensor, groups_N: Tensor) -> Tensor:
        """Reward minus the mean of its group, by the group's std + 1e-6 [N]; each group by itself, whatever its size.

        A group of one, or of equal rewards, has no advantage. Sums run in float64, so equal rewards centre to zero.
        """
        _, inverse_N, counts_G = groups_N.unique(return_inverse=True, return_counts=True)
        counts_G = counts_G.double()
        zeros_G = counts_G.new_zeros(counts_G.shape)
        rewards = rewards_N.double()
        means_G = zeros_G.index_add(0, inverse_N, rewards) / counts_G
        centred_N = rewards - means_G[inverse_N]
        if not self.normalize_std:
            return centred_N.to(rewards_N.dtype)
        variance_G = zeros_G.index_add(0, inverse_N, centred_N.square()) / (counts_G - 1).clamp(min=1)
        return (centred_N / (variance_G.sqrt()[inverse_N] + self.STD_FLOOR)).to(rewards_N.dtype)

    def loss(
        self, logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped surrogate of PPO (Schulman et al. 2017, arXiv:1707.06347), per token, to be minimised.

        Returns loss [B, T] and per-token ``pg_clipfrac`` (1 where the clip binds) and ``ppo_kl`` (old - new logprob),
        all zero where the mask is zero.
        """
        log_ratio_BT = (logprobs_BT - old_logprobs_BT) * mask_BT
        # beyond the bound the clip binds or the sample is one in 10^8: an overflow would make 0 x inf of an even group
        ratio_BT = log_ratio_BT.clamp(max=self.MAX_LOG_RATIO).exp()
        weight_BT = -advantages_B.unsqueeze(1) * mask_BT
        free_BT = weight_BT * ratio_BT
        clipped_BT = weight_BT * ratio_BT.clamp(1 - self.clip_low, 1 + self.clip_high)
        metrics = {
            "pg_clipfrac": (clipped_BT > free_BT).to(ratio_BT.dtype).detach(),
            "ppo_kl": -log_ratio_BT.detach(),
        }
        return free_BT.maximum(clipped_BT), metrics
