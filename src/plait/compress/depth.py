"""Which layers are not needed: remove the one whose absence changes the predictions least, repeat.

A step asks of every layer that may go what the model would predict without it, beside what was
removed before, and compares that with the uncut parent: mean squared difference of logits, or KL.
All candidates of a step travel together: when the sweep reaches layer i, the candidate without i
is born as a copy of the stream in front of it, and from there on every stream passes through every
layer, each of which is read once. So a candidate costs only the layers behind it, half a forward
pass on average, and no stream of an earlier layer has to be kept. As many candidates go in one
sweep as memory allows; the number of layer passes is the same whatever that number is.

Layers can be protected: so many of a kind stay, and the first and last on request.

Source: arXiv 2508.14444 section 4.2 for the criterion; the sweep is ours.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from plait.compress.scores import Removal
from plait.compress.stream import (
    Metric,
    Sweep,
    embed,
    final_hidden,
    head_blocks,
    logit_distances,
    run_layer,
)
from plait.core.artifact import write_json
from plait.core.errors import ConfigError
from plait.core.progress import Progress
from plait.model.hf_stream import ModelDirectory
from plait.model.spec import LAYER_KINDS, ModelSpec


class Rules(NamedTuple):
    """Which layers may go."""

    keep: Mapping[str, int] = {}
    """Layers of a kind (M, * or -) that stay at least."""
    protect_ends: bool = False
    """Whether the parent's first and last layer stay."""

    def candidates(self, spec: ModelSpec, remaining: Sequence[int]) -> list[int]:
        """Return the layers that may go next."""
        counts = Counter(spec.pattern[layer] for layer in remaining)
        ends = {0, spec.num_layers - 1} if self.protect_ends else set()
        return [
            layer
            for layer in remaining
            if counts[spec.pattern[layer]] > self.keep.get(spec.pattern[layer], 0)
            and layer not in ends
            and len(remaining) > 1
        ]

    def check(self, spec: ModelSpec, num_removals: int) -> None:
        """Raise ConfigError if so many layers may not be removed."""
        if unknown := sorted(set(self.keep) - set(LAYER_KINDS)):
            raise ConfigError(f"keep names {unknown}; kinds of layers are M, * and -")
        remaining = list(range(spec.num_layers))
        for number in range(num_removals):
            candidates = self.candidates(spec, remaining)
            if not candidates:
                raise ConfigError(
                    f"{num_removals} layers are to be removed, but only {number} may go: of "
                    f"{dict(Counter(spec.pattern))} layers {dict(self.keep)} are kept"
                    + (" and the first and last" if self.protect_ends else "")
                )
            # Any of the kind with most to spare: how many may go does not depend on which go.
            remaining.remove(candidates[0])


class DepthSearch:
    """Removes layers one after another; the state of the search is `depth.json`.

    tokens (B, T) are the rows to predict, reference (B, T, D) the parent's hidden states after the
    final norm. Interrupted at any moment, it goes on behind the last candidates measured.
    """

    def __init__(
        self,
        model: ModelDirectory,
        tokens: Int[Tensor, "B T"],
        reference: Float[Tensor, "B T D"],
        rules: Rules,
        sweep: Sweep,
        metric: Metric,
        file: Path,
    ) -> None:
        self._model, self._tokens, self._reference = model, tokens, reference
        self._rules, self._sweep, self._file = rules, sweep, file
        self._metric: Metric = metric
        state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        self.removals = [
            Removal(step["layer"], _with_int_keys(step["harms"]))
            for step in state.get("removals", [])
        ]
        self._harms: dict[int, float] = _with_int_keys(state.get("harms", {}))
        self.layer_passes: int = state.get("layer_passes", 0)
        """Passes of all rows through one layer so far."""
        self.head_passes: int = state.get("head_passes", 0)
        """Passes of all rows through the output head so far."""

    def run(self, num_removals: int) -> tuple[Removal, ...]:
        """Return the first removals, measuring what is not yet known."""
        spec = self._model.spec
        while len(self.removals) < num_removals:
            gone = {removal.layer for removal in self.removals}
            remaining = [layer for layer in range(spec.num_layers) if layer not in gone]
            candidates = self._rules.candidates(spec, remaining)
            self._measure(remaining, [layer for layer in candidates if layer not in self._harms])
            layer = min(candidates, key=lambda candidate: self._harms[candidate])
            self.removals.append(Removal(layer, dict(sorted(self._harms.items()))))
            self._harms = {}
            self._save()
        return tuple(self.removals[:num_removals])

    def _measure(self, remaining: list[int], pending: list[int]) -> None:
        """Find the harm of every pending candidate, a group at a time."""
        if not pending:
            return
        size = max(1, self._sweep.stream_bytes // self._reference.nbytes)
        groups = [pending[start : start + size] for start in range(0, len(pending), size)]
        # The first stream lacks nothing yet; the others are those of a group's candidates.
        streams = self._reference.new_empty(1 + len(groups[0]), *self._reference.shape)
        streams[0] = embed(self._model, self._tokens, self._sweep.dtype, self._sweep.device)
        start = 0
        with Progress(f"depth {len(remaining) - 1}", len(pending), "layers") as progress:
            for number, group in enumerate(groups):
                until = groups[number + 1][0] if number + 1 < len(groups) else group[-1]
                self._harms |= self._measure_group(remaining[start:], group, streams, until)
                start = remaining.index(until)
                self._save()
                progress.advance(len(group), f"least {min(self._harms.values()):.3g}")

    def _measure_group(
        self, layers: list[int], group: list[int], streams: Float[Tensor, "K B T D"], until: int
    ) -> dict[int, float]:
        """Return the harm of each candidate of a group.

        streams[0] comes as the stream in front of the first of the layers and is left as the one
        in front of layer `until`.
        """
        model, sweep = self._model, self._sweep
        num_born = 0
        for index in layers:
            moving = streams[0 if index < until else 1 : 1 + num_born]
            self.layer_passes += len(moving)
            if index in group:
                num_born += 1
                streams[num_born] = streams[0]
            if len(moving):
                layer = model.layer(index, sweep.dtype, sweep.device)
                run_layer(layer, moving.flatten(0, 1), sweep.tokens_per_forward)
        for x in streams[1 : 1 + num_born]:
            x.copy_(final_hidden(model, x))
        distances = logit_distances(
            self._reference,
            list(streams[1 : 1 + num_born]),
            head_blocks(model, sweep.dtype, sweep.device),
            self._metric,
        )
        self.head_passes += 1 + num_born
        return dict(zip(group, distances, strict=True))

    def _save(self) -> None:
        write_json(
            self._file,
            {
                "removals": [removal._asdict() for removal in self.removals],
                "harms": self._harms,
                "layer_passes": self.layer_passes,
                "head_passes": self.head_passes,
            },
        )


def _with_int_keys(table: Mapping[str, float]) -> dict[int, float]:
    return {int(key): value for key, value in table.items()}
