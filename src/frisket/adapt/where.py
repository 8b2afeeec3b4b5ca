"""`where`: which modules a method may touch, as patterns over the dotted module paths of the base model.

A pattern is a shell glob (``*.q_proj``) or one of the words below; patterns unite. ``{layers: 4-7}`` in the list
restricts the others to those layers (alone it means everything in them). A matched module means all its parameters;
``[a:b]`` behind a pattern means rows a to b - 1 of each of them (of a table: those tokens; of experts: those experts).
The experts of a mixture are 3-D tensors [expert, ...] that no module holds alone; they are matched by their own paths
(``*.experts.gate_up_proj``). Zero matches is an error that names the nearest module.

``embeddings-and-head`` and ``last-layer`` are the light adaptations of Zlotchevski et al. 2022 (arXiv 2208.13928).
What restricts further (``half``, ``kappa``, ``locate``) is in policies.py.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import nn

from frisket.errors import ConfigError, UnsupportedError, nearest


def _in_a_list(value: object) -> object:
    return [value] if isinstance(value, Mapping) else value


Where = Annotated[str | list[str | dict[str, Any]], BeforeValidator(_in_a_list)]

WORDS = {
    "all": "every module",
    "all-linear": "every linear layer but the output head",
    "attention": "linear layers of the attention blocks",
    "mlp": "linear layers of the feed-forward blocks",
    "experts": "the experts of a mixture (3-D tensors)",
    "norms": "normalisation layers",
    "embeddings": "the input embedding",
    "head": "the output head",
    "embeddings-and-head": "the input embedding and the output head",
    "last-layer": "everything in the last block",
}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)")
_ROW_RANGE = re.compile(r"\[(\d*):(\d*)\]$")
Spans = tuple[tuple[int, int], ...]  # first row, and the one behind the last; ascending, none touches another


@dataclass(frozen=True)
class Match:
    """What `where` found.

    Attributes:
        modules: dotted paths of the matched modules, in the model's order.
        by_pattern: how many parameters each pattern matched.
        tensors: dotted paths of the parameters that were matched by their own path: experts, and what a policy took
            out of a module.
        notes: what the user should hear of the match.
        rows: of which parameters only some rows were matched, and which.
        by_policy: how many parameters were left after each policy.
    """

    modules: tuple[str, ...]
    by_pattern: dict[str, int]
    tensors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rows: Mapping[str, Spans] = field(default_factory=dict)
    by_policy: Mapping[str, int] = field(default_factory=dict)

    def parameters(self, model: nn.Module) -> list[str]:
        """Names of all matched parameters, in the model's order (a tied tensor counts once)."""
        prefixes = tuple({f"{name}." if name else "" for name in self.modules})
        chosen = set(self.tensors)
        return [name for name, _ in model.named_parameters() if name in chosen or name.startswith(prefixes)]

    def entries(self, model: nn.Module) -> int:
        """How many entries were matched; of row ranges those rows' alone."""
        total = 0
        for name in self.parameters(model):
            parameter = model.get_parameter(name)
            rows = sum(end - first for first, end in self.rows.get(name, ((0, len(parameter)),)))
            total += rows * parameter[0].numel()
        return total

    def experts(self, model: nn.Module) -> list[str]:
        """Names of the matched expert tensors, those of matched modules included."""
        every = set(expert_tensors(model))
        return [name for name in self.parameters(model) if name in every]

    def linears(self, model: nn.Module) -> list[str]:
        """Dotted paths of the linear layers at or below the matched modules."""
        inside = [
            name
            for name, module in model.named_modules()
            if is_linear(module) and any(_is_within(name, root) for root in self.modules)
        ]
        return inside


def is_linear(module: nn.Module) -> bool:
    """True for layers with a 2-D weight that multiply from the right, Hugging Face's Conv1D included."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def expert_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The experts of a mixture: 3-D parameters [expert, ...], by dotted path; kernels of convolutions are none."""
    found = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and len(parameter) > 1 and not isinstance(module, nn.modules.conv._ConvNd):
                found[f"{path}.{name}" if path else name] = parameter
    return found


def resolve(model: nn.Module, where: Where, *, moves_weights: bool = True) -> Match:
    """Find the modules that `where` names.

    Args:
        moves_weights: whether the modules' own weights move, so that a tied head would move the embedding.

    Raises:
        ConfigError: a pattern or a layer range matches nothing; rows that a tensor does not have, or that another
            pattern claims as a whole.
        UnsupportedError: a head tied to the embedding.
    """
    patterns, layers = _split(where)
    names, experts = [name for name, _ in model.named_modules()], expert_tensors(model)
    chosen: dict[str, None] = {}
    tensors: dict[str, None] = {}
    rows: dict[str, list[tuple[int, int]]] = {}
    by_pattern: dict[str, int] = {}
    for written in patterns:
        pattern = _ROW_RANGE.sub("", written)
        found = [name for name in _find(model, names, pattern) if layers is None or layer_of(name) in layers]
        inside = [name for name in _find_experts(experts, pattern) if layers is None or layer_of(name) in layers]
        inner = Match(tuple(found), {}, tuple(inside)).parameters(model)
        by_pattern[written] = len(inner)
        if not inner and moves_weights:
            refuse_tied_head(model, found)
        if not inner and is_tied_head(model, found):
            by_pattern[written] = model.get_output_embeddings().weight.numel()  # pyright: ignore
        if not by_pattern[written]:
            raise ConfigError(_no_range(model, names, written) or _no_match(model, pattern, layers))
        if pattern != written:
            span = _span(model, written, inner)
            for name in inner:
                rows.setdefault(name, []).append(span)
            continue
        chosen.update(dict.fromkeys(found))
        tensors.update(dict.fromkeys(inside))
    match = Match(
        tuple(name for name in names if name in chosen), by_pattern, tuple(name for name in experts if name in tensors)
    )
    match = replace(match, notes=(*_left_out_experts(model, match, experts), *_left_out_mamba(model, match)))
    return _with_rows(model, match, rows) if rows else match


def _span(model: nn.Module, written: str, names: Sequence[str]) -> tuple[int, int]:
    """The rows that a pattern names, which every matched tensor must have."""
    pattern, found = _ROW_RANGE.sub("", written), _ROW_RANGE.search(written)
    lengths = {len(model.get_parameter(name)) for name in names}
    if len(lengths) > 1:
        raise ConfigError(
            f"adapt.where = {written!r}: rows are meant, and the matched tensors have {min(lengths):,} to "
            f"{max(lengths):,} of them.\nName modules of one length, such as adapt.where='embeddings[0:{min(lengths)}]'"
        )
    (length,) = lengths
    first, end = (int(text) if text else default for text, default in zip(found.groups(), (0, length), strict=True))  # pyright: ignore
    if end <= first and not written.endswith(":]"):
        kind = "empty" if end == first else "reversed"
        low, high = (end, first) if end < first <= length else (first, first + 1) if first < length else (0, length)
        raise ConfigError(
            f"adapt.where = {written!r}: the range of rows is {kind}: it begins with its first row and ends behind its "
            f"last.\nUse adapt.where='{pattern}[{low}:{high}]'"
        )
    if not first < end <= length:
        raise ConfigError(
            f"adapt.where = {written!r}: {names[0]} has {length:,} rows, 0 to {length - 1:,}, and these are not among "
            f"them.\nUse a range such as adapt.where='{pattern}[0:{length}]'"
        )
    return first, end


def _with_rows(model: nn.Module, match: Match, rows: Mapping[str, Sequence[tuple[int, int]]]) -> Match:
    """Add tensors of which only rows move."""
    whole = next((name for name in match.parameters(model) if name in rows), None)
    if whole is not None:
        raise ConfigError(
            f"adapt.where: one pattern claims {whole} as a whole, another only rows of it.\nLeave one of the two out."
        )
    named = Match((), {}, tuple(rows)).parameters(model)
    united = {name: _united(rows[name]) for name in named}
    match = replace(match, tensors=(*match.tensors, *named), rows=united)
    moving = sum(end - first for spans in united.values() for first, end in spans)
    total = sum(len(model.get_parameter(name)) for name in named)
    return replace(match, notes=(*match.notes, f"rows: {moving:,} of {total:,} move, the others stay bit for bit"))


def _united(spans: Sequence[tuple[int, int]]) -> Spans:
    """Overlapping and touching ranges become one.

    >>> _united([(4, 6), (0, 2), (1, 3), (6, 7)])
    ((0, 3), (4, 7))
    """
    united: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if united and first <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        else:
            united.append((first, end))
    return tuple(united)


def _left_out_mamba(model: nn.Module, match: Match) -> tuple[str, ...]:
    left_out = [name for name in _mamba_outputs(model) if name not in match.modules]
    if "all-linear" not in match.by_pattern or not left_out:
        return ()
    return (f"all-linear leaves out out_proj of {len(left_out)} Mamba layers: their kernels would pass an adapter by",)


def _left_out_experts(model: nn.Module, match: Match, experts: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """Experts that a word for linear layers passes by, because they are no linear layers."""
    word = next((word for word in ("all-linear", "mlp") if word in match.by_pattern), None)
    if word is None or not experts or match.experts(model):
        return ()
    size = sum(tensor.numel() for tensor in experts.values())
    return (
        f"{word} leaves out the experts: {len(experts)} 3-D tensors with {size:,} parameters; with them: "
        f"adapt.where='[{word}, experts]'",
    )


def short_names(model: nn.Module, chosen: Sequence[str]) -> list[str]:
    """The shortest list that names exactly ``chosen``: leaf names where they are unambiguous, else full paths."""
    leaves = {name.rpartition(".")[2] for name in chosen}
    reached = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in leaves}
    return sorted(leaves) if reached == set(chosen) else list(chosen)


def short_tensor_names(model: nn.Module, chosen: Sequence[str]) -> list[str]:
    """The shortest list that names exactly these parameters: their last two words where those are unambiguous."""
    ends = {".".join(name.split(".")[-2:]) for name in chosen}
    reached = {name for name, _ in model.named_parameters() if name.endswith(tuple(f".{end}" for end in ends))}
    return sorted(ends) if reached == set(chosen) else list(chosen)


def embedding_name(model: nn.Module) -> str:
    """Dotted path of the input embedding."""
    table = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    return next(name for name, module in model.named_modules() if module is table)


def head_name(model: nn.Module) -> str | None:
    """Dotted path of the output head, or None where the model has none."""
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    return next((name for name, module in model.named_modules() if module is head), None)


def is_tied_head(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether an output head whose weight is the input embedding's is among the named modules."""
    if head_name(model) not in names:
        return False
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight  # pyright: ignore


def refuse_tied_head(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse an output head whose weight is the input embedding's.

    Raises:
        UnsupportedError: such a head is among the named modules.
    """
    if is_tied_head(model, names):
        raise UnsupportedError(
            "adapt.where reaches the output head, whose weight is tied to the input embedding: moving one moves both.\n"
            "Use adapt.where=all-linear, or adapt.method=full adapt.where=embeddings to move both."
        )


def _split(where: Where) -> tuple[list[str], set[int] | None]:
    items = [where] if isinstance(where, str) else list(where)
    patterns = [item for item in items if isinstance(item, str)]
    layers: set[int] | None = None
    for item in items:
        if not isinstance(item, str):
            unknown = set(item) - {"layers"}
            if unknown:
                raise ConfigError(
                    f"adapt.where: unknown entry {min(unknown)!r}; known are patterns, `layers: 4-7`, and the policies "
                    "half, kappa, locate."
                )
            layers = (layers or set()) | set(_layer_range(item["layers"]))
    return patterns or ["all"], layers


def _layer_range(text: str | int) -> Iterable[int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(text))
    if not found:
        raise ConfigError(f"adapt.where: layers = {text!r} is not a range such as 4-7 or a single layer such as 4.")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ConfigError(f"adapt.where: layers = {text!r} ends before it starts.\nUse layers: {last}-{first}.")
    return range(first, last + 1)


def _find_experts(experts: Iterable[str], pattern: str) -> list[str]:
    if pattern in WORDS:
        return list(experts) if pattern == "experts" else []
    return [name for name in experts if fnmatch.fnmatchcase(name, pattern)]


def _find(model: nn.Module, names: list[str], pattern: str) -> list[str]:
    if pattern in WORDS:
        names = _of_text(model, names)
    if pattern == "all":
        return [name for name in names if list(model.get_submodule(name).parameters(recurse=False))]
    if pattern in ("all-linear", "attention", "mlp"):
        linears = _linears_of_blocks(model, names)
        return linears if pattern == "all-linear" else [name for name in linears if block_of(model, name) == pattern]
    if pattern == "experts":
        return []  # they are tensors, not modules
    if pattern == "norms":
        return [name for name in names if "norm" in type(model.get_submodule(name)).__name__.lower()]
    if pattern == "embeddings":
        return [embedding_name(model)]
    if pattern == "head":
        head = head_name(model)
        return [head] if head else []
    if pattern == "embeddings-and-head":
        return [name for name in (embedding_name(model), head_name(model)) if name]
    if pattern == "last-layer":
        last = max((layer for name in names if (layer := layer_of(name)) is not None), default=None)
        inside = [name for name in names if last is not None and layer_of(name) == last]
        return [name for name in inside if list(model.get_submodule(name).parameters(recurse=False))]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _of_text(model: nn.Module, names: list[str]) -> list[str]:
    """Modules of the language model: the words do not mean the towers for images and sound that may stand beside it."""
    decoder, head = model.get_decoder(), head_name(model)  # pyright: ignore[reportCallIssue]
    root = next((name for name, module in model.named_modules() if module is decoder), "")
    return [name for name in names if _is_within(name, root) or name == head]


def _linears_of_blocks(model: nn.Module, names: list[str]) -> list[str]:
    apart = {head_name(model), *_mamba_outputs(model)}
    return [name for name in names if is_linear(model.get_submodule(name)) and name not in apart]


def _mamba_outputs(model: nn.Module) -> list[str]:
    """The last projections of Mamba layers (a state matrix A and a skip D), whose fused kernels read the weight itself:
    an adapter on it would be passed by, and PEFT refuses most of them.
    """
    state = {"A_log", "D"}
    own = {name: {key for key, _ in module.named_parameters(recurse=False)} for name, module in model.named_modules()}
    return [f"{name}.out_proj" for name, keys in own.items() if state <= keys]


def block_of(model: nn.Module, name: str) -> str | None:
    """``attention`` or ``mlp`` by the conventional names of Hugging Face's blocks."""
    path = name.lower()
    if re.search(r"(^|\.)mixer\.", path):  # Nemotron-H calls every block so
        block = type(model.get_submodule(name[: path.rindex(".")])).__name__.lower()
        return "attention" if "attention" in block else "mlp" if "mlp" in block else None
    if re.search(r"(^|\.)(self_attn|attn|attention|self_attention|linear_attn)\.", path):
        return "attention"
    return "mlp" if re.search(r"(^|\.)(mlp|feed_forward|ffn|block_sparse_moe|experts)\.", path) else None


def layer_of(name: str) -> int | None:
    """Index of the block that a module or parameter lies in; None outside the blocks."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def within_layer(name: str) -> str:
    """The rest of a path behind the block's index.

    >>> within_layer("model.layers.12.mlp.down_proj.weight")
    'mlp.down_proj.weight'
    """
    found = _LAYER.search(name)
    return name[found.end() :] if found else name


def has_rows(pattern: str) -> bool:
    """Whether a pattern ends with a range of rows."""
    return bool(_ROW_RANGE.search(pattern))


def _is_within(name: str, root: str) -> bool:
    return not root or name == root or name.startswith(f"{root}.")


def _no_range(model: nn.Module, names: list[str], pattern: str) -> str:
    """What is wrong with brackets behind a pattern that would match without them; empty where that is not it."""
    stem, _, inside = pattern.rstrip("]").rpartition("[")
    inner = Match(tuple(_find(model, names, stem)), {}).parameters(model) if pattern.endswith("]") and stem else []
    if not inner:
        return ""
    return (
        f"adapt.where = {pattern!r}: [{inside}] is not a range of rows, which is [first:end] or a part of it.\n"
        f"Use adapt.where='{stem}[0:{min(len(model.get_parameter(name)) for name in inner)}]'"
    )


def _no_match(model: nn.Module, pattern: str, layers: set[int] | None) -> str:
    total = sum(1 for _ in model.named_parameters())
    within = "" if layers is None else f" within layers {min(layers)}-{max(layers)}"
    leaves = Counter(
        name.rpartition(".")[2] for name, module in model.named_modules() if name and list(module.parameters())
    )
    leaves.update(name.rpartition(".")[2] for name in expert_tensors(model))
    best = nearest(pattern.rpartition(".")[2] or pattern, [*leaves, *WORDS])
    hint = ""
    if best in WORDS:
        hint = f" Nearest: {best!r} ({WORDS[best]})."
    elif best:
        hint = f" Nearest: '*.{best}' ({leaves[best]})."
    return f"adapt.where = {pattern!r} matched 0 of {total} parameters{within}.{hint} List them: frisket plan --names."
