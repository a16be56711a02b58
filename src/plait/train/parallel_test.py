import json
import subprocess
import sys

import pytest

RUN = """
import sys
from pathlib import Path
import torch
from plait.model.init import init_weights
from plait.model.lm import HybridLM
from plait.model.spec import ModelSpec
from plait.train import parallel
from plait.train.conftest import settings
from plait.train.loop import Interrupted, train
from plait.train.losses import next_token_loss
from plait.train.losses_test import Pattern, Uneven
from plait.train.precision import set_precision
from safetensors.torch import save_file

torch.set_num_threads(1)
out, num_steps = Path(sys.argv[1]), int(sys.argv[2])

def evaluate(model, step):
    batch = Pattern().__next__()
    with torch.no_grad():
        return {"loss": float(next_token_loss(model, batch).total)}

with parallel.process_group():
    model = init_weights(HybridLM(ModelSpec.preset("test")), 3)
    parallel.shard(model, model.backbone.layers)
    plan = settings(num_steps, accumulation=4, clip_norm=0.5, evaluate_every_steps=2)
    train(model, Uneven(), next_token_loss, plan, out, evaluate=evaluate)
    gathered = parallel.gathered(model)
    if parallel.is_main():
        save_file(gathered, out / "model.safetensors")
"""
