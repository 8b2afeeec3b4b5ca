"""Batched, cached decoding gives what one prompt at a time without cache gives."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from frisket.generate import sample
from frisket.generate.settings import GenerateSettings

SHAPE = {
    "vocab_size": 23,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PROMPTS = [[1, 5, 6, 7, 8, 9, 10, 11], [1, 12], [1, 4, 4, 13, 20], [1], [1, 7, 19, 3, 3, 21, 22, 5, 6, 14, 15], [1, 12]]
STOP = (2, 9)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.float64).eval()


def mistral() -> MistralForCausalLM:
    torch.manual_seed(1)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)).to(torch.float64).eval()


def uncached(model, prompt: list[int], new_tokens: int, stop: tuple[int, ...]) -> list[int]:
    ids = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


def run(model, prompts=PROMPTS, *, new_tokens=12, batch_tokens=10_000, stop=STOP, **choice) -> list[list[int]]:
    settings = GenerateSettings(max_new_tokens=new_tokens, **choice)
    return sample.generate(model, prompts, stop_ids=stop, pad_id=0, settings=settings, batch_tokens=batch_tokens)


@pytest.mark.parametrize("make", [llama, mistral])
def test_batched_and_cached_is_one_by_one_and_uncached(make):
    model = make()
    expected = [uncached(model, prompt, 12, STOP) for prompt in PROMPTS]
    assert run(model) == expected
    assert run(model, batch_tokens=1) == expected
    assert run(model, batch_tokens=40) == expected
    assert len({tuple(answer) for answer in expected}) > 2, "the prompts must tell a mixed-up order apart"


def test_the_window_of_the_sliding_model_matters():
    wide = mistral()
    wide.config.sliding_window = None
    assert run(wide) != run(mistral())


def test_answers_stop_before_any_of_the_stop_tokens():
    free = run(llama(), stop=())
    assert all(len(answer) == 12 for answer in free)
    stop = free[0][5]
    stopped = run(llama(), stop=(stop,))
    assert stopped == [sample.until_stop(answer, [stop]) for answer in free]
    assert len(stopped[0]) <= 5


def test_generation_settings_of_the_checkpoint_do_not_change_greedy_answers():
    model = llama()
    expected = run(model)
    own = GenerationConfig(do_sample=True, temperature=0.6, top_k=3, repetition_penalty=1.9, eos_token_id=[5])
    model.generation_config = own
    assert run(model) == expected
    assert model.generation_config is own


def test_sampling_follows_its_seed_and_leaves_the_global_state():
    model = llama()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = run(model, temperature=1.5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == run(model, temperature=1.5, seed=3)
    assert first != run(model, temperature=1.5, seed=4)


def test_a_tiny_top_p_is_greedy():
    assert run(llama(), temperature=1.0, top_p=1e-6) == run(llama())


def test_the_model_comes_back_in_training_mode_and_progress_adds_up():
    model = llama().train()
    done = []
    settings = GenerateSettings(max_new_tokens=2)
    sample.generate(model, PROMPTS, stop_ids=(), pad_id=0, settings=settings, batch_tokens=20, progress=done.append)
    assert model.training
    assert sum(done) == len(PROMPTS)
    assert len(done) > 1


def test_batches_keep_to_the_budget_and_lose_nothing():
    lengths = [5, 1, 9, 9, 30, 2, 2]
    grouped = sample.batches(lengths, 3, 24)
    assert sorted(index for batch in grouped for index in batch) == list(range(7))
    for batch in grouped:
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + 3) <= 24


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt 1 of 2 has no token"):
        run(llama(), [[1], []])


def test_no_prompt_gives_no_answer():
    assert run(llama(), []) == []


def test_streaming_gives_the_same_tokens():
    model = llama()
    settings = GenerateSettings(max_new_tokens=12)
    for prompt, answer in zip(PROMPTS, run(model), strict=True):
        assert list(sample.stream(model, prompt, stop_ids=STOP, pad_id=0, settings=settings)) == answer


def test_a_stream_that_is_left_ends():
    model = llama().train()
    settings = GenerateSettings(max_new_tokens=100)
    tokens = sample.stream(model, [1, 5], stop_ids=(), pad_id=0, settings=settings)
    first = next(tokens)
    tokens.close()
    assert model.training, "the decoding thread has put the model back"
    assert first == uncached(model.eval(), [1, 5], 1, ())[0]


def test_an_error_while_streaming_reaches_the_reader():
    with pytest.raises(IndexError, match="index out of range"):
        list(sample.stream(llama(), [1, 400], stop_ids=(), pad_id=0))


def test_stop_and_pad_ids():
    model = llama()
    model.generation_config.eos_token_id = [4, 2]
    assert sample.stop_ids_of(model, [17]) == (2, 4, 17)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    assert sample.stop_ids_of(model) == ()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    assert sample.pad_id_of(tokenizer) == 0
    tokenizer.pad_token = "b"
    assert sample.pad_id_of(tokenizer) == 1
