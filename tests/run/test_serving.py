"""What is said of vLLM follows from the adapter's own configuration, before and after training."""

import pytest
import torch
from tests.models import tiny

from frisket.adapt.methods import attach
from frisket.recipe import Recipe
from frisket.run import make_plan
from frisket.run.serving import LORA_RANKS, expected_config, serving_of
from frisket.watch import Silent

PLAIN = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "bias": "none"}


def test_plain_lora_is_served_as_it_is():
    line = serving_of(PLAIN).line("Qwen/Qwen3-4B", "out/chats")
    assert line.endswith(
        "serves the adapter as it is: vllm serve Qwen/Qwen3-4B --enable-lora --lora-modules tuned=out/chats/adapter"
    )
    assert serving_of({**PLAIN, "use_rslora": True}) == serving_of(PLAIN)


@pytest.mark.parametrize(("rank", "flag"), [(1, 16), (16, 16), (17, 32), (24, 32), (300, 320), (512, 512)])
def test_the_rank_decides_the_flag(rank, flag):
    serving = serving_of({**PLAIN, "r": rank})
    assert serving.max_lora_rank == flag
    assert flag in LORA_RANKS
    assert (f"--max-lora-rank {flag} " in serving.line("base")) == (flag != 16)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"r": 513}, "rank 513 is above 512"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "rows of added tokens"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "expert"),
        ({"bias": "lora_only"}, "bias"),
        ({"rank_pattern": {"q_proj": 4}}, "one rank"),
        ({"alpha_pattern": {"q_proj": 4}}, "one rank and scale"),
        ({"lora_bias": True}, "bias"),
        ({"use_qalora": True}, "no variant of LoRA"),
        ({"peft_type": "IA3"}, "LoRA only, not IA3"),
    ],
)
def test_what_vllm_does_not_read_needs_a_merge(changed, reason):
    serving = serving_of({**PLAIN, **changed})
    assert serving.needs_merge
    assert serving.max_lora_rank is None
    assert reason in serving.line("base", "out/x")
    assert serving.line("base", "out/x").endswith("frisket export out/x --to merged")
    assert not serving.as_dict()["as_it_is"]


def test_lora_on_the_head_is_served_with_a_word():
    serving = serving_of({**PLAIN, "target_modules": ["q_proj", "lm_head"]})
    assert not serving.needs_merge
    assert "258,048" in serving.line("base")
    assert serving_of({**PLAIN, "target_modules": "lm_head"}).notes


def test_a_quantised_base_is_named():
    serving = serving_of(PLAIN, "4bit")
    assert not serving.needs_merge
    assert serving.line("base").endswith("; trained on a 4bit base: only a merge is exactly what was trained")


def test_a_whole_model_is_served_as_it_is():
    assert "serves the model as it is: vllm serve 'my runs/model'" in serving_of(None).line("base", "my runs")


WIDE = {"hidden_size": 1024, "intermediate_size": 1024, "num_key_value_heads": 4, "head_dim": 256}


def adapter(adapt: dict, *, family: str = "llama", added: tuple[int, ...] = (), **changes) -> dict | None:
    """What a plan expects of the adapter's configuration."""
    method = Recipe.model_validate({"adapt": adapt}).adapt
    with torch.device("meta"):
        model = tiny(family, torch.float32, **changes)
    try:
        attach(method, model, torch.Generator().manual_seed(0), added)
    except (NotImplementedError, RuntimeError):
        return expected_config(method, None)
    return expected_config(method, model)


@pytest.mark.parametrize(
    ("adapt", "model", "reason"),
    [
        ({"method": "lora"}, {}, None),
        ({"method": "lora", "dora": True}, {}, "no DoRA"),
        ({"method": "lora"}, {"added": (3, 4)}, "no rows of added tokens"),
        ({"method": "lora", "where": ["all-linear", "experts"]}, {"family": "qwen3_moe"}, "expert tensors"),
        ({"method": "ia3"}, {}, "not IA3"),
        ({"method": "ln_tuning"}, {}, "not LN_TUNING"),
        ({"method": "peft", "peft_type": "vera"}, {}, "not VERA"),
        ({"method": "peft", "peft_type": "lora"}, {}, None),
        ({"method": "peft", "peft_type": "LORA", "options": {"r": 513}}, WIDE, "rank 513"),
        ({"method": "peft", "peft_type": "LORA", "options": {"use_dora": True}}, {}, "no DoRA"),
        ({"method": "full"}, {}, None),
    ],
)
def test_the_plan_says_it_before_training(adapt, model, reason):
    serving = serving_of(adapter(adapt, **model))
    assert serving.needs_merge == (reason is not None)
    assert (reason or "") in "; ".join(serving.reasons)


def test_the_plan_speaks_of_the_head():
    serving = serving_of(adapter({"where": ["all-linear", "head"]}, tie_word_embeddings=False))
    assert "LoRA on the head" in "; ".join(serving.notes)


def test_a_plan_of_pefts_own_lora_is_made(small_model, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "alpha", "completion": "beta"}\n' * 8)
    given = {"model": {"path": str(small_model)}, "data": [{"path": str(tmp_path / "d.jsonl")}], "evaluate": "off"}
    adapt = {"method": "peft", "peft_type": "LORA", "options": {"r": 24}}
    plan = make_plan(Recipe.model_validate({**given, "adapt": adapt}), watcher=Silent())
    assert "--max-lora-rank 32 " in dict(plan.facts())["serve"]
    assert plan.as_dict()["serving"]["max_lora_rank"] == 32
    assert not plan.serving.notes
    given["adapt"] = {**adapt, "where": ["attention", "head"]}
    plan = make_plan(Recipe.model_validate(given), watcher=Silent())
    assert "LoRA on the head" in dict(plan.facts())["serve"]
