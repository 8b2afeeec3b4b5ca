"""What cannot be trained or loaded is refused before the first step, by the command line on the bundled base."""

import json
import re

import pytest
import torch
from tests.models import tiny

from frisket.adapt.lora import Lora
from frisket.adapt.methods import load_adapter
from frisket.cli.main import run_words
from frisket.errors import CheckError

LOHA = ("adapt.method=peft", "adapt.peft_type=LOHA")
SHORT = ("evaluate=off", "train.max_steps=1", "train.step_tokens=64")
NARROWER = r"is 128 wide at its narrower side, and no change of it has a higher rank \({}\)\.\nUse {}"
REFUSED = {
    "a pattern that matches nothing": (
        ["adapt.where=*.qproj"],
        r"adapt\.where = '\*\.qproj' matched 0 of 38 parameters\. Nearest: '\*\.q_proj'",
    ),
    "nothing kept": (
        ["adapt.method=mft", "adapt.keep=0"],
        r"adapt\.keep = 0 \(override\) must be .*\nadapt\.keep=0\.9",
    ),
    "more than all kept": (["adapt.method=mft", "adapt.keep=1.5"], r"adapt\.keep = 1\.5 .* must be a number above 0"),
    "a graft of nothing": (
        ["adapt.method=graft", "adapt.of=x", "adapt.keep=0"],
        r"adapt\.keep = 0 .* must be a number",
    ),
    "a rank above two matrices of a layer": (
        ["adapt.rank=200"],
        r"adapt\.rank = 200: .*k_proj "
        + NARROWER.format(r"8 of 28 matrices are too small", r"adapt\.rank=128, which all of them allow, ")
        + r"""or adapt\.rank_pattern='{"\*\.k_proj": 128, "\*\.v_proj": 128}'\.""",
    ),
    "a rank by pattern": (
        ['adapt.rank_pattern={"*_proj": 8, "*.k_proj": 300}'],
        r"adapt\.rank_pattern: '\*\.k_proj': 300 is above the narrower side of a matrix, which is 128 wide.*"
        r"""\nUse adapt\.rank_pattern='{"\*_proj": 8, "\*\.k_proj": 128}'""",
    ),
    "a rank of PEFT's": (
        [*LOHA, "adapt.options={r: 129}"],
        r"adapt\.options\.r = 129: .*k_proj " + NARROWER.format(".*", r"adapt\.options\.r=128"),
    ),
    "a square above its layer": (["adapt.method=mora", "adapt.rank=500"], r"would have 506 rows.*\nUse adapt\.rank=43"),
    "two that claim one weight": (
        ["adapt.method=ln_tuning", "adapt.where=norms", "adapt.also_train=[norms]"],
        r"both claim model\.layers\.0\.input_layernorm\.\nLeave it out of one of the two",
    ),
    "a tensor and rows of it": (
        ["adapt.method=full", 'adapt.where=["embeddings", "embeddings[0:5]"]'],
        r"one pattern claims model\.embed_tokens\.weight as a whole, another only rows of it",
    ),
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> str:
    """Twenty short samples."""
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {n}", "completion": f"number {n}"}) + "\n" for n in range(20)))
    return str(path)


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_the_first_step(case, chats, tmp_path, capsys):
    overrides, told = REFUSED[case]
    words = ["train", "--model", "bundled", "--data", chats, "--out", str(tmp_path / "out"), *SHORT, *overrides]
    assert run_words(words) == 2
    heard = capsys.readouterr()
    assert re.search(told, "\n".join(line.rstrip() for line in (heard.out + heard.err).splitlines()))
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "fix",
    [
        ["adapt.rank=128"],
        ["adapt.rank=200", 'adapt.rank_pattern={"*.k_proj": 128, "*.v_proj": 128}'],
        ["adapt.rank=200", 'adapt.rank_pattern={"*_proj": 8, "*.k_proj": 128}'],
        [*LOHA, "adapt.options.r=128"],
        ["adapt.method=mora", "adapt.rank=43"],
    ],
)
def test_the_rank_that_the_refusal_names_is_planned(fix, chats):
    assert run_words(["plan", "--model", "bundled", "--data", chats, *SHORT, *fix]) == 0


@pytest.mark.parametrize("changes", [{"intermediate_size": 40}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_an_adapter_of_other_shapes_or_layers_is_refused(changes, tmp_path):
    attached = Lora(rank=4).attach(tiny(dtype=torch.float32), torch.Generator().manual_seed(0))
    attached.save(tmp_path, attached.state())
    told = r"of other shapes or layers than this base's: (?s:.*)\nUse the base that its adapter_config\.json names"
    with pytest.raises(CheckError, match=told):
        load_adapter(tiny(dtype=torch.float32, **changes), tmp_path)
