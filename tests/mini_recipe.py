"""recipes/tiny made small enough for a test: the same stages, keys and code, another size."""

from pathlib import Path

RECIPE = Path(__file__).parent.parent / "recipes" / "tiny"

OVERRIDES = [
    "curate.categories={ "
    'english = { languages = ["en"], extractor = "resiliparse", installed = ['
    '{ pages = ["stdlib/pydoc_data/topics.py"], max_pages = 40 } ] }, '
    'code = { content = "code", code = { detect_licences = false }, '
    'installed = [{ pages = ["stdlib/[a-d]*.py"], max_pages = 8 }] } }',
    "curate.workers=1",
    "curate.validation_share=0.1",
    "tokenizer.vocab_size=400",
    "blend.phases=[{ until = 0.6, weights = { english = 1, code = 1 } }, "
    "{ until = 1.0, weights = { english = 2, code = 1 } }]",
    "blend.optional=[]",
    "blend.max_epochs=50",
    "pretrain.total_tokens=8192",
    "pretrain.sequence_tokens=128",
    "pretrain.rows_per_batch=4",
    "pretrain.warmup_tokens=1024",
    "pretrain.decay_tokens=2048",
    "pretrain.evaluate_every_steps=8",
    "pretrain.checkpoint_every_steps=4",
    "pretrain.evaluation_tokens=1024",
    "sft.chains.num_train=120",
    "sft.chains.num_test=12",
    "sft.tokens_per_batch=1024",
    "sft.checkpoint_every_steps=3",
    "sft.instructions.num_train=6",
    "sft.instructions.num_test=2",
    "sft_tools.tool_calls.num_train=6",
    "sft_tools.tool_calls.num_test=2",
    "sft_tools.chains.num_train=6",
    "sft_tools.chains.num_test=2",
    "sft_tools.instructions.num_train=6",
    "sft_tools.instructions.num_test=2",
    "sft_tools.letters.num_train=6",
    "sft_tools.letters.num_test=2",
    "sft_tools.checkpoint_every_steps=3",
    "sft_long.chains.num_train=12",
    "sft_long.chains.num_test=2",
    "sft_long.tool_calls.num_train=2",
    "sft_long.tool_calls.num_test=2",
    "sft_long.instructions.num_train=2",
    "sft_long.instructions.num_test=2",
    "sft_long.letters.num_train=2",
    "sft_long.letters.num_test=2",
    "sft_long.checkpoint_every_steps=2",
    "ifeval_rl.num_steps=3",
    "ifeval_rl.group_size=2",
    "ifeval_rl.prompts_per_batch=2",
    "ifeval_rl.max_tokens=8",
    "ifeval_rl.instructions.num_train=6",
    "ifeval_rl.instructions.num_test=2",
    "ifeval_rl.checkpoint_every_steps=2",
    # An untrained model does no task right, but its letters differ.
    "dpo.rounds={ num_rounds = 2, group_size = 4, max_prompt_tokens = 128, max_tokens = 24, "
    "letters = { num_train = 12, num_test = 4 } }",
    "dpo.tokens_per_batch=1024",
    "dpo.checkpoint_every_steps=1",
    "reward.letters.num_train=24",
    "reward.tokens_per_batch=512",
    "reward.checkpoint_every_steps=1",
    "rlhf.num_steps=3",
    "rlhf.group_size=2",
    "rlhf.prompts_per_batch=2",
    "rlhf.max_tokens=12",
    "rlhf.evaluate_every_steps=1",
    "rlhf.checkpoint_every_steps=2",
    "rlhf.letters.num_train=6",
    "rlhf.letters.num_test=4",
    "merge.alphas=[0.25, 0.5]",
    "merge.tasks={ letters = { max_prompt_tokens = 128, max_tokens = 12, "
    "letters = { num_test = 8 } } }",
    "compress.memory=2560KiB",
    "compress.calibration_rows=6",
    "compress.row_tokens=128",
    "compress.held_out_rows=2",
    "compress.max_ranked=3",
    "compress.top_k=2",
    "compress.healing.num_steps=2",
    "distill.phases=[{ tokens = 4096, sequence_tokens = 256, rows_per_batch = 2 }]",
    "distill.checkpoint_every_steps=3",
    "eval_child.budgets=[8]",
    "eval_child.max_tokens=24",
    "eval.budgets=[0, 8]",
    "eval.max_tokens=24",
]
# The other core has tests of its own.
OVERRIDES += [
    f"{stage}.num_threads=1"
    for stage in ("pretrain", "sft", "sft_tools", "sft_long", "reward", "distill")
]
ARGUMENTS = [argument for override in OVERRIDES for argument in ("--set", override)]
