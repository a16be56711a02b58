"""Reward models: a backbone with one number per answer.

    reward = score(hidden state of the answer's last token)         score (1, D), no bias

The backbone is an ordinary HybridLM and is written as one, so transformers, vLLM and plait load the
directory as a language model. transformers 5.23 has no sequence classifier of this family that
could name the head, so the head lies beside it in `score.safetensors` under the name transformers'
classifiers give it, `score.weight`.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from plait.align.losses import reward_losses
from plait.align.preference import PairBatch
from plait.core.artifact import write_atomic
from plait.core.errors import CheckpointError
from plait.core.run_folder import model_directory
from plait.data.loader import PackedBatch
from plait.model import hf
from plait.model.layers import Linear
from plait.model.lm import HybridLM
from plait.train.loop import LossOutput

SCORE_FILE = "score.safetensors"


class RewardModel(nn.Module):
    """A language model that says how good an answer is."""

    def __init__(self, lm: HybridLM) -> None:
        super().__init__()
        self.lm = lm
        weight = lm.lm_head.weight
        # zero: every answer starts equal, and the first gradient decides
        self.score = Linear(lm.spec.hidden_size, 1, bias=False, device=weight.device)
        nn.init.zeros_(self.score.weight)

    def forward(self, batch: PackedBatch) -> Float[Tensor, " S"]:
        """Return the reward of each document of a packed row, in at least float32."""
        tokens, cu_seqlens = (
            x.to(self.score.weight.device) for x in (batch.tokens, batch.cu_seqlens)
        )
        hidden = self.lm.hidden(tokens, cu_seqlens=cu_seqlens)[0]
        last = hidden[cu_seqlens[1:].long() - 1]
        return self.score(last.to(self.score.weight.dtype))[:, 0]


def reward_loss(model: RewardModel, batch: PairBatch) -> LossOutput:
    """Return the Bradley-Terry loss summed over the pairs of a batch; each pair weighs 1."""
    chosen, rejected = model(batch.packed).view(-1, 2).unbind(1)
    total = reward_losses(chosen, rejected).sum()
    metrics = {name: value.detach() for name, value in pair_figures(chosen, rejected).items()}
    return LossOutput(total, len(chosen), metrics, batch.packed.tokens.numel())


def pair_figures(
    chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"]
) -> dict[str, Float[Tensor, ""]]:
    """Return accuracy, margin and the mean reward, whose drift no pairwise loss holds back."""
    return {
        "accuracy": (chosen > rejected).double().mean(),
        "margin": (chosen - rejected).mean(),
        "mean_reward": torch.cat([chosen, rejected]).mean(),
    }


def save_reward_model(model: RewardModel, directory: Path, tokenizer_from: Path) -> None:
    """Write the backbone as a Hugging Face directory, and the head beside it."""
    hf.save(model.lm, directory, tokenizer_from=tokenizer_from)
    weight = model.score.weight.detach().cpu().contiguous()
    write_atomic(directory / SCORE_FILE, save({"score.weight": weight}, {"format": "pt"}))


def load_reward_model(source: Path, device: torch.device | str | None = None) -> RewardModel:
    """Load what `save_reward_model` wrote, from its directory or from the stage's run folder.

    Raises: CheckpointError if there is no head, or it does not fit the backbone.
    """
    directory = model_directory(source)
    file = directory / SCORE_FILE
    model = RewardModel(hf.load(directory, dtype=torch.float32, device=device))
    try:
        weight = load_file(file)["score.weight"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory}: no {SCORE_FILE}, so this is no reward model; train one with the stage "
            "`reward`"
        ) from None
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{file}: holds no readable score.weight: {error}") from None
    if weight.shape != model.score.weight.shape:
        raise CheckpointError(
            f"{file}: score.weight has shape {tuple(weight.shape)}, the backbone needs "
            f"{tuple(model.score.weight.shape)}"
        )
    with torch.no_grad():
        model.score.weight.copy_(weight)
    return model
