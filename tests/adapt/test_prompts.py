"""Soft prompts: in any row what PEFT's own model computes for a sample alone, saved as PEFT's, gone without a trace."""

import dataclasses
import gc
import json
import weakref
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from tests.models import samples, tiny

from frisket.adapt.methods import attach as attach_method
from frisket.adapt.methods import load_adapter
from frisket.adapt.prompts import Prefix, Prompt, PTuning
from frisket.adapt.rates import rate_of
from frisket.adapt.roots import root_of
from frisket.attend.pack import pack
from frisket.attend.reference import path_to
from frisket.errors import CheckError, ConfigError, UnsupportedError
from frisket.generate import sample
from frisket.generate.settings import GenerateSettings
from frisket.hf import attention, decoding
from frisket.hf.attention import own_attention
from frisket.hf.forward import hidden_states
from frisket.hf.heads import head_of
from frisket.hf.load import recompute_layers
from frisket.hf.roots import check_layers
from frisket.run.arranging import room_for_samples
from frisket.supervise.loss import summed_loss
from frisket.supervise.predictions import predictions
from frisket.train.checks import check_model
from frisket.train.optim import Optimizer
from frisket.train.settings import TrainSettings
from frisket.train.step import Laying, lay_out, run_step

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")  # plain PEFT's
    for message in ("`is_gradient_checkpointing`:FutureWarning", "Position ids are not supported:UserWarning")
]

METHODS = {
    "prompt": Prompt(tokens=3),
    "p-tuning": PTuning(tokens=3, width=6),
    "p-tuning+lstm": PTuning(tokens=3, width=6, encoder="lstm"),
    "prefix": Prefix(tokens=3),
    "prefix+projection": Prefix(tokens=3, projection=True, width=6),
}
SEQUENCES = samples(0, [9, 4, 12, 6])
for _one in SEQUENCES[1:]:
    _one.input_ids[:3] = SEQUENCES[0].input_ids[:3]  # a trunk, for the forest
PAIRS = {s.sample_id: (s, np.r_[0.0, np.linspace(0.5, 1.5, len(s) - 1)]) for s in SEQUENCES}
ARRANGEMENTS = [("isolated", 2), ("padded", 4), ("forest", 1), ("alone", 1)]


def attached_to(method, model=None, seed=0):
    model = tiny() if model is None else model
    return model, method.attach(model, torch.Generator().manual_seed(seed))


def of_peft(attached, base):
    """PEFT's own model around another copy of the base, with the same prompt encoder."""
    wrapper = peft.PeftModelForCausalLM(base, dataclasses.replace(attached._config)).to(base.dtype)
    state = {n.removeprefix("prompt_encoder."): value for n, value in attached.state().items()}
    wrapper.prompt_encoder["default"].load_state_dict(state)
    return wrapper


def logits_alone(wrapper, base, ids):
    """PEFT's forward of one sample, through transformers' own attention."""
    with own_attention(base, "eager"):
        out = wrapper(input_ids=torch.from_numpy(ids.astype(np.int64))[None])
    return out.logits[0, -len(ids) :]


def gradients(model, attached, batches, backend="auto"):
    model.zero_grad()
    for parameter in attached.parameters().values():
        parameter.grad = None
    for rows in batches:
        hidden = hidden_states(model, rows, backend)
        summed_loss(hidden, predictions(rows, PAIRS), head_of(model), 8).backward()
    return {name: parameter.grad.clone() for name, parameter in attached.parameters().items()}


def gradients_of_peft(wrapper, base):
    for one, weights in PAIRS.values():
        logits = logits_alone(wrapper, base, one.input_ids)[:-1].log_softmax(-1)
        chosen = logits[torch.arange(len(one) - 1), torch.from_numpy(one.input_ids[1:].astype(np.int64))]
        (-(chosen * torch.from_numpy(weights[1:]).to(logits)).sum()).backward()
    own = wrapper.prompt_encoder["default"].named_parameters()
    return {f"prompt_encoder.{n}": parameter.grad for n, parameter in own}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("name", METHODS)
def test_every_row_gives_the_logits_and_gradients_of_peft_alone(name, family):
    model, attached = attached_to(METHODS[name], tiny(family))
    base = tiny(family)
    wrapper = of_peft(attached, base)
    expected = gradients_of_peft(wrapper, base)
    alone = {s.sample_id: logits_alone(wrapper, base, s.input_ids).detach() for s in SEQUENCES}
    for arrangement, micro_rows in ARRANGEMENTS:
        batches = pack(SEQUENCES, arrangement, 20, micro_rows)
        for backend in ("grouped", "sdpa"):
            for rows in batches:
                logits = head_of(model).logits(hidden_states(model, rows, backend))
                for leaf in rows.leaves:
                    at = np.flatnonzero(np.isin(rows.segment_ids.ravel(), path_to(rows, leaf.last)))
                    theirs = alone[leaf.sample_id]
                    assert (logits[torch.from_numpy(at)] - theirs).norm() <= 1e-10 * theirs.norm()
            ours = gradients(model, attached, batches, backend)
            for parameter, gradient in expected.items():
                assert gradient.norm() > 0
                assert (ours[parameter] - gradient).norm() <= 1e-10 * gradient.norm(), (arrangement, parameter)


@pytest.mark.parametrize("name", METHODS)
def test_in_fp32_too(name):
    model, attached = attached_to(METHODS[name], tiny(dtype=torch.float32))
    base = tiny(dtype=torch.float32)
    expected = gradients_of_peft(of_peft(attached, base), base)
    ours = gradients(model, attached, pack(SEQUENCES, "forest", 20, 2))
    for parameter, gradient in expected.items():
        assert (ours[parameter] - gradient).norm() <= 1e-5 * gradient.norm()


def test_a_packed_row_of_peft_itself_differs():
    """What the tests above could see: PEFT's own forward of two samples in one row."""
    _, attached = attached_to(METHODS["prefix"])
    base = tiny()
    wrapper = of_peft(attached, base)
    both = np.concatenate([SEQUENCES[0].input_ids, SEQUENCES[1].input_ids])
    packed = logits_alone(wrapper, base, both)[-len(SEQUENCES[1]) :]
    assert (packed - logits_alone(wrapper, base, SEQUENCES[1].input_ids)).abs().max() > 0.1


def test_mask_free_rows_are_one_text_behind_the_root():
    model, attached = attached_to(METHODS["prompt"])
    base = tiny()
    rows = pack(SEQUENCES, "mask-free", 64, 1)[0]
    theirs = logits_alone(of_peft(attached, base), base, rows.input_ids[0])
    ours = head_of(model).logits(hidden_states(model, rows))
    assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


def test_input_vectors_go_through_recurrent_layers_as_in_peft():
    model, attached = attached_to(METHODS["prompt"], tiny("qwen3_5"))
    base = tiny("qwen3_5")
    wrapper = of_peft(attached, base)
    for rows in pack(SEQUENCES, "alone", 1):
        ours = head_of(model).logits(hidden_states(model, rows))
        theirs = logits_alone(wrapper, base, rows.input_ids[0])
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


@pytest.mark.parametrize("name", METHODS)
def test_recomputed_layers_give_the_same_gradients(name):
    model, attached = attached_to(METHODS[name], tiny(dtype=torch.float32))
    batches = pack(SEQUENCES, "isolated", 20, 2)
    expected = gradients(model, attached, batches)
    recompute_layers(model, 2)
    assert all(torch.equal(g, expected[n]) for n, g in gradients(model, attached, batches).items())


@pytest.mark.parametrize("name", METHODS)
def test_only_the_root_moves_and_detaching_gives_the_base_back(name):
    rows = pack(SEQUENCES, "isolated", 64)[0]
    model = tiny()
    before = hidden_states(model, rows)
    base = {n: t.clone() for n, t in model.state_dict().items()}
    model, attached = attached_to(METHODS[name], model)
    optimizer = Optimizer(attached.parameters(), TrainSettings(weight_decay=0.1), torch.float64, method=attached)
    start = attached.state()
    step = lay_out(list(PAIRS.values()), Laying("isolated", 20, 1, "grouped", 64), "weights")
    for number in (1, 2):
        run_step(model, attached, optimizer, step, Laying("isolated", 20, 1, "grouped", 64), number=number, rate=1e-2)
    assert all(not torch.equal(value, start[n]) for n, value in attached.state().items())
    assert all(torch.equal(t, base[n]) for n, t in model.state_dict().items())
    assert model.state_dict().keys() == base.keys()
    assert not torch.equal(hidden_states(model, rows), before)
    with attached.switched_off():
        assert torch.equal(hidden_states(model, rows), before)
    assert not torch.equal(hidden_states(model, rows), before)
    attached.detach()
    assert torch.equal(hidden_states(model, rows), before)


COUNTS = {  # the tiny Llama has width 32, 2 layers and 2 key heads of width 8
    "prompt": 3 * 32,
    "p-tuning": 3 * 32 + (32 + 1) * 6 + (6 + 1) * 6 + (6 + 1) * 32,
    "p-tuning+lstm": 3 * 32 + 2 * 4 * (6 * (32 + 6 + 2) + 6 * (12 + 6 + 2)) + (12 + 1) * 12 + (12 + 1) * 32,
    "prefix": 3 * 2 * 2 * 2 * 8,
    "prefix+projection": 3 * 16 + (16 + 1) * 6 + (6 + 1) * 2 * 2 * 2 * 8,
}


@pytest.mark.parametrize("name", METHODS)
def test_what_moves_is_counted_by_formula(name):
    _, attached = attached_to(METHODS[name], tiny(dtype=torch.float32))
    assert sum(p.numel() for p in attached.parameters().values()) == COUNTS[name]
    assert {p.dtype for p in attached.parameters().values()} == {torch.float32}


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_decides_and_the_global_generator_is_not_touched(name):
    model = tiny(dtype=torch.float32)
    state = torch.get_rng_state()
    first, again, other = (METHODS[name].attach(model, torch.Generator().manual_seed(s)).state() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again[n]) for n, value in first.items())
    assert any(not torch.equal(value, other[n]) for n, value in first.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_plain_peft_loads_what_was_saved_and_so_do_we(name, dtype, tmp_path: Path):
    rows = pack(SEQUENCES, "isolated", 64)[0]
    model, attached = attached_to(METHODS[name], tiny(dtype=dtype).eval())
    optimizer = Optimizer(attached.parameters(), TrainSettings(), dtype, method=attached)
    with torch.no_grad():
        for master in optimizer.masters.values():
            master.add_(0.05)
    optimizer.write_back()
    attached.save(tmp_path, optimizer.masters)
    ours = head_of(model).logits(hidden_states(model, rows)).detach()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = tiny(dtype=dtype).eval()
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(head_of(again).logits(hidden_states(again, rows)), ours)
    loaded.save(tmp_path / "again", loaded.state())
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()
    base = tiny(dtype=dtype).eval()
    wrapper = peft.PeftModel.from_pretrained(base, str(tmp_path))
    for one in SEQUENCES:
        theirs = logits_alone(wrapper, base, one.input_ids).detach()
        mine = head_of(model).logits(hidden_states(model, pack([one], "alone", 1)[0])).detach()
        bar = 1e-5 if dtype == torch.float32 else 2**-5
        assert (mine - theirs).abs().max() <= bar * max(1.0, float(theirs.abs().max()))


def test_a_soft_prompt_for_another_model_is_refused(tmp_path: Path):
    for method, name in ((METHODS["prompt"], "p"), (METHODS["prefix"], "k")):
        _, attached = attached_to(method, tiny(dtype=torch.float32))
        attached.save(tmp_path / name, attached.state())
        with pytest.raises(CheckError, match="it was made for another model"):
            load_adapter(tiny(dtype=torch.float32, hidden_size=64, num_key_value_heads=4), tmp_path / name)


def test_nothing_can_be_merged():
    _, attached = attached_to(METHODS["prompt"])
    with pytest.raises(UnsupportedError, match="a soft prompt cannot be merged"):
        attached.merge()


def test_a_text_begins_the_prompt():
    model = tiny(dtype=torch.float32)
    ids = {"abc": [5, 6], "long": [5, 6, 7, 8]}
    words = model.get_input_embeddings().weight
    short = attach_method(
        Prompt(tokens=3, init_text="abc"), model, torch.Generator().manual_seed(0), tokenize=ids.__getitem__
    )
    (table,) = short.state().values()
    assert torch.equal(table, words[[5, 6, 5]])
    assert short.match.notes[-1] == "init_text has 2 tokens: repeated to 3"
    long = attach_method(
        Prompt(tokens=3, init_text="long"), model, torch.Generator().manual_seed(0), tokenize=ids.__getitem__
    )
    (table,) = long.state().values()
    assert torch.equal(table, words[[5, 6, 7]])
    assert long.match.notes[-1] == "init_text has 4 tokens: cut to its first 3"


def test_without_a_text_it_begins_as_tokens():
    model, attached = attached_to(METHODS["prompt"], tiny(dtype=torch.float32))
    (table,) = attached.state().values()
    words = model.get_input_embeddings().weight
    assert all((words == row).all(1).any() for row in table)


def test_a_zero_prefix_is_not_the_base():
    """Keys of 0 still take their share of the softmax."""
    rows = pack(SEQUENCES, "isolated", 64)[0]
    before = hidden_states(tiny(), rows)
    model, attached = attached_to(Prefix(tokens=3, init="zero"))
    assert all((value == 0).all() for value in attached.state().values())
    assert (hidden_states(model, rows) - before).abs().max() > 1e-3


def test_what_a_soft_prompt_cannot_have_is_refused():
    with pytest.raises(UnsupportedError, match="moves nothing of the base"):
        attached_to(Prompt(where="all-linear"))
    with pytest.raises(UnsupportedError, match="looks up an input of its own by token id"):
        attached_to(METHODS["prompt"], tiny("gemma4"))
    with pytest.raises(ConfigError, match="so no sample has room"):
        room_for_samples(20, 20)
    assert (room_for_samples(20, 3), room_for_samples(None, 3)) == (17, None)


def test_a_prefix_of_layers_without_keys_of_their_own_is_refused():
    model, _ = attached_to(METHODS["prefix"], tiny("qwen3_5"))
    with pytest.raises(UnsupportedError, match="3 recurrent layers, which have no keys and values"):
        check_model(model, SEQUENCES, Laying("alone", 1, 1, "grouped", 64))


def test_a_prefix_of_layers_that_differ_is_refused():
    with pytest.raises(UnsupportedError, match="of one shape, and this model's have 1 heads of width 16 and 2 heads"):
        attached_to(METHODS["prefix"], tiny("gemma4_moe"))


def test_a_prefix_where_keys_are_not_as_wide_as_values_is_refused():
    model, _ = attached_to(METHODS["prefix"], tiny("deepseek_v3"))
    with pytest.raises(UnsupportedError, match=r"a layer has .* heads of width .* for keys or values"):
        hidden_states(model, pack(SEQUENCES, "isolated", 64)[0])


@pytest.mark.parametrize("arrangement", ["isolated", "forest", "mask-free", "padded"])
@pytest.mark.parametrize("name", METHODS)
def test_the_checks_pass_with_a_root(name, arrangement):
    model, _ = attached_to(METHODS[name], tiny("gemma2", dtype=torch.float32))
    checks = check_model(model, SEQUENCES, Laying(arrangement, 64, 1, "grouped", 64))
    assert "with the virtual tokens" in checks.conformance


def test_the_checks_see_a_prefix_at_the_wrong_layer(monkeypatch):
    """Planted: every layer gets the first one's keys and values."""
    model, _ = attached_to(METHODS["prefix"], tiny(dtype=torch.float32))
    true = attention.Prefixed.attend
    monkeypatch.setattr(attention.Prefixed, "attend", lambda self, *words: true(self, *words[:4], 0))
    with pytest.raises(CheckError, match="frisket's forward differs"):
        check_model(model, SEQUENCES, Laying("isolated", 64, 1, "grouped", 64))


def test_the_checks_see_positions_that_are_not_shifted(monkeypatch):
    """Planted: the samples of a row start at position 0, as if nothing stood in front."""
    from frisket.hf import forward

    true = forward.rooted

    def unshifted(rows, tokens):
        whole = true(rows, tokens)
        whole.position_ids[:, tokens:] -= tokens
        return whole

    monkeypatch.setattr(forward, "rooted", unshifted)
    model, _ = attached_to(METHODS["prompt"], tiny(dtype=torch.float32))
    with pytest.raises(CheckError, match="frisket's forward differs"):
        check_model(model, SEQUENCES, Laying("isolated", 64, 1, "grouped", 64))


PROMPTS = [[1, 5, 6, 7, 8, 9, 10, 11], [1, 12], [1, 4, 4, 13, 20], [1]]


def uncached(model, prompt, new_tokens, stop):
    """Greedy decoding through our own rows, without a cache."""
    ids = list(prompt)
    for _ in range(new_tokens):
        one = dataclasses.replace(
            SEQUENCES[0],
            input_ids=np.array(ids, np.int32),
            **{
                n: np.zeros(len(ids), getattr(SEQUENCES[0], n).dtype)
                for n in ("roles", "turns", "marks", "data_weights")
            },
        )
        with torch.no_grad():
            token = int(head_of(model).logits(hidden_states(model, pack([one], "alone", 1)[0]))[-1].argmax())
        if token in stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("name", METHODS)
def test_generated_in_batches_is_uncached_and_is_peft(name, family):
    settings = GenerateSettings(max_new_tokens=8)
    model, attached = attached_to(METHODS[name], tiny(family).eval())
    expected = [uncached(model, prompt, 8, (2,)) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) > 2, "the prompts must tell a mixed-up order apart"
    assert sample.generate(model, PROMPTS, stop_ids=(2,), pad_id=0, settings=settings) == expected
    for prompt, answer in zip(PROMPTS, expected, strict=True):
        assert list(sample.stream(model, prompt, stop_ids=(2,), pad_id=0, settings=settings)) == answer
    base = tiny(family).eval()
    wrapper = of_peft(attached, base).eval()
    with torch.no_grad(), own_attention(base):
        for prompt, answer in zip(PROMPTS, expected, strict=True):
            ids = torch.tensor([prompt])
            out = wrapper.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=2,
                pad_token_id=0,
            )
            assert sample.until_stop(out[0, len(prompt) :].tolist(), (2,)) == answer


@pytest.mark.parametrize("name", ["prompt", "prefix"])
@pytest.mark.parametrize("family", ["gemma3_image", "falcon_h1", "nemotron_h"])
def test_a_model_whose_generate_takes_no_vectors_is_decoded_without_it(name, family):
    settings = GenerateSettings(max_new_tokens=8)
    model, _ = attached_to(METHODS[name], tiny(family).eval())
    if name == "prefix" and family != "gemma3_image":  # refused before the first step
        with pytest.raises(UnsupportedError, match="recurrent layers, which have no keys and values"):
            check_layers(model)
        return
    assert not decoding.takes_vectors(model)
    expected = [uncached(model, prompt, 8, (2,)) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) > 2, "the prompts must tell a mixed-up order apart"
    assert sample.generate(model, PROMPTS, stop_ids=(2,), pad_id=0, settings=settings) == expected
    for prompt, answer in zip(PROMPTS, expected, strict=True):
        assert list(sample.stream(model, prompt, stop_ids=(2,), pad_id=0, settings=settings)) == answer


@pytest.mark.parametrize("choice", [{}, {"temperature": 1.0}, {"temperature": 1.5, "top_p": 0.8, "seed": 3}])
def test_decoding_without_generate_chooses_the_tokens_that_generate_would(choice, monkeypatch):
    settings = GenerateSettings(max_new_tokens=8, **choice)
    model, _ = attached_to(METHODS["prompt"], tiny().eval())
    expected = sample.generate(model, PROMPTS, stop_ids=(2,), pad_id=0, settings=settings)
    assert len({tuple(answer) for answer in expected}) > 2
    asked = []
    monkeypatch.setattr(decoding, "takes_vectors", lambda model: asked.append(model))
    assert sample.generate(model, PROMPTS, stop_ids=(2,), pad_id=0, settings=settings) == expected
    assert asked


def test_without_its_root_the_model_generates_as_before():
    settings = GenerateSettings(max_new_tokens=8)
    bare = sample.generate(tiny().eval(), PROMPTS, stop_ids=(2,), pad_id=0, settings=settings)
    model, attached = attached_to(METHODS["prefix"], tiny().eval())
    assert sample.generate(model, PROMPTS, stop_ids=(2,), pad_id=0, settings=settings) != bare
    with attached.switched_off():
        assert sample.generate(model, PROMPTS, stop_ids=(2,), pad_id=0, settings=settings) == bare


def test_virtual_tokens_are_counted_as_computed_once_a_row():
    pairs = list(PAIRS.values())
    plain = lay_out(pairs, Laying("isolated", 20, 1, "grouped", 64), "weights")
    step = lay_out(pairs, Laying("isolated", 20, 1, "grouped", 64, virtual_tokens=3), "weights")
    assert len(step.micro_batches) == 2
    assert step.computed_tokens == plain.computed_tokens + 2 * 3
    assert step.flat_tokens == plain.flat_tokens == 31


def test_a_model_with_a_root_can_be_freed():
    model, attached = attached_to(METHODS["p-tuning"], tiny(dtype=torch.float32))
    gone = weakref.ref(model)
    assert root_of(model) is not None
    del model, attached
    gc.collect()
    assert gone() is None


def test_short_runs_go_as_far_as_long_ones():
    peaks = [rate_of(METHODS["prompt"].declared_rate, 256, steps).value for steps in (50, 5000)]
    assert peaks == [0.1, 0.001]
    networks = {METHODS[name].declared_rate for name in ("p-tuning", "prefix+projection")}
    assert [rate_of(each, 256, 5000).value for each in networks] == [1e-4]


def test_saved_configurations_are_those_of_peft(tmp_path: Path):
    kinds = {"prompt": "PROMPT_TUNING", "p-tuning": "P_TUNING", "prefix+projection": "PREFIX_TUNING"}
    for name, kind in kinds.items():
        _, attached = attached_to(METHODS[name], tiny(dtype=torch.float32))
        attached.save(tmp_path / kind, attached.state())
        config = json.loads((tmp_path / kind / "adapter_config.json").read_text())
        assert (config["peft_type"], config["inference_mode"], config["num_virtual_tokens"]) == (kind, True, 3)
        assert not config.get("prefix_projection")
