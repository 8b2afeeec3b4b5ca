"""Chat templates: rendering as transformers does it, and conversations to tokens of known provenance."""

import json
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from frisket.data.alignment import Encoding
from frisket.data.encoding import ANSWER_ROLES as ANSWER_ROLES
from frisket.data.encoding import BATCH, Batch, RenderOf, encode_batches
from frisket.data.problem import BadSample, Problem
from frisket.data.provenance import NO_TURN as NO_TURN
from frisket.data.provenance import Rendering, render_conversation, render_joined, render_text
from frisket.data.tokens import Codec, codec_of
from frisket.errors import ConfigError, DataError
from frisket.types import Conversation, Message, Sequence

BUILT_IN = ("plain", "chatml")


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` of newer templates: rendered as it is, because provenance is found without it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which decides about each attribute once for each type: it asks nothing else."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self._is_safe: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read this attribute."""
        key = (type(obj), attr)
        if key not in self._is_safe:
            self._is_safe[key] = super().is_safe_attribute(obj, attr, value)
        return self._is_safe[key]


@dataclass(frozen=True)
class Template:
    """A chat template with the tokenizer's special tokens filled in.

    Attributes:
        name: ``plain`` and ``chatml`` (built in), the path of a file, or that of the tokenizer's own template.
        text: Jinja source; the source for conversations with tools follows after a NUL where there is one.
        variables: what the source may name beside messages and tools.
    """

    name: str
    text: str
    variables: Mapping[str, Any]

    def render(self, messages: list[dict], tools: list[dict], add_generation_prompt: bool) -> str:
        """Render as ``apply_chat_template(tokenize=False)`` does.

        Raises:
            BadSample: the template refuses the conversation or fails on it.
        """
        sources = self.text.split("\0")
        source = sources[-1] if tools else sources[0]
        try:
            return _compiled(source).render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.variables,
            )
        except Exception as error:  # a template is a program: it can fail in any way
            raise BadSample(f"template '{self.name}' does not render this conversation: {error}") from error


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        sequence: the tokens.
        straddling: tokens whose characters belong to two provenances.
        removed_characters: earlier reasoning that the template left out.
    """

    sequence: Sequence
    straddling: int
    removed_characters: int


def load_template(choice: str | None, tokenizer: Any) -> Template:
    """Load the chat template ``choice``: a built-in name, a file, or (None) the tokenizer's own, else ``plain``.

    Raises:
        ConfigError: there is no such template, it is not valid Jinja, or it fails on the simplest conversation.
    """
    codec = codec_of(tokenizer)
    own = tokenizer.chat_template if choice is None else None
    if choice is None and own:
        name, text = "the tokenizer's own", _own_text(own)
    else:
        name, text = choice or "plain", _chosen_text(choice or "plain")
    if name == "plain" and not codec.names.get("eos_token"):
        raise ConfigError("template 'plain' ends turns with the tokenizer's end token, and this tokenizer has none")
    if name == "chatml" and not codec.knows("<|im_end|>"):
        raise ConfigError(
            "template 'chatml' ends turns with <|im_end|>, which is no special token of this tokenizer.\n"
            "Use the built-in one that works with any tokenizer: model.template=plain"
        )
    variables = {**codec.names, "begin": codec.adds_bos} if name == "plain" else codec.names
    template = Template(name, text, variables)
    _probe(template)
    return template


def encode(conversation: Conversation, template: Template, tokenizer: Any) -> Encoded:
    """Turn one conversation into tokens.

    Raises:
        DataError: it cannot be rendered, or who wrote what cannot be located; names file and line.
    """
    (result,) = encode_many([conversation], template, tokenizer)
    if isinstance(result, Problem):
        raise DataError(str(result))
    return result


def encode_many(
    conversations: Iterable[Conversation], template: Template, tokenizer: Any
) -> Iterator[Encoded | Problem]:
    """Turn conversations into tokens, in order, many at a time; one that cannot be is a ``Problem``."""
    codec, coming = codec_of(tokenizer), iter(conversations)
    for batch in encode_batches(iter(lambda: list(islice(coming, BATCH)), []), render_of(template, codec), codec):
        yield from _separate(batch)


def render_of(template: Template, codec: Codec) -> RenderOf:
    """How conversations of any kind are rendered under this template."""
    return partial(_render, template=template, codec=codec)


def _separate(batch: Batch) -> Iterator[Encoded | Problem]:
    for number, (conversation, (first, last)) in enumerate(
        zip(batch.conversations, pairwise(batch.offsets.tolist()), strict=True)
    ):
        if number in batch.problems:
            yield Problem(conversation.place, batch.problems[number])
            continue
        weights, marks = batch.said(number)
        sequence = Sequence(
            conversation.sample_id,
            conversation.source,
            batch.input_ids[first:last],
            batch.roles[first:last],
            batch.turns[first:last],
            marks,
            weights,
        )
        yield Encoded(sequence, int(batch.straddling[number]), int(batch.removed[number]))


def prompt_ids(messages: Seq[Message], template: Template, tokenizer: Any, tools: Seq[Mapping] = ()) -> list[int]:
    """Tokens after which the model is to answer ``messages``.

    Raises:
        DataError: the template fails on them.
    """
    conversation = Conversation("prompt", 0, "prompt", 1, tuple(messages), tuple(tools))
    codec = codec_of(tokenizer)

    def render(messages: list[dict], tools: list[dict], last: bool) -> str:
        return template.render(messages, tools, add_generation_prompt=True)

    try:
        rendering = render_conversation(conversation, render, template.name, codec)
        return _tokens(rendering, codec).ids.tolist()
    except BadSample as error:
        raise DataError(f"a prompt of {len(messages)} messages: {error}") from error


def prompt_of(conversation: Conversation, template: Template, tokenizer: Any) -> list[int]:
    """Tokens of everything before the last assistant message, rendered as the conversation itself is."""
    last = max(
        (i for i, m in enumerate(conversation.messages) if m.role == "assistant"), default=len(conversation.messages)
    )
    messages = conversation.messages[:last]
    if conversation.render == "chat":
        return prompt_ids(messages, template, tokenizer, conversation.tools)
    codec = codec_of(tokenizer)
    rendering = render_joined(Conversation("prompt", 0, "prompt", 1, messages), codec)
    begin = [codec.bos_id] if codec.adds_bos and codec.bos_id is not None else []
    return [*begin, *_tokens(rendering, codec).ids.tolist()]


def _own_text(own: str | Mapping[str, str]) -> str:
    if isinstance(own, str):
        return own
    if "default" not in own:
        raise ConfigError(
            f"the tokenizer has chat templates {sorted(own)} but none named 'default'; give model.template=FILE"
        )
    return "\0".join([own["default"], *([own["tool_use"]] if "tool_use" in own else [])])


def _chosen_text(choice: str) -> str:
    if choice in BUILT_IN:
        return (Path(__file__).parent / "templates" / f"{choice}.jinja").read_text(encoding="utf-8")
    path = Path(choice).expanduser()
    if not path.is_file():
        raise ConfigError(f"model.template = '{choice}' is neither a file nor one of {', '.join(BUILT_IN)}")
    return path.read_text(encoding="utf-8")


def _probe(template: Template) -> None:
    """See that the template renders at all."""
    try:
        template.render([{"role": "user", "content": "x"}], [], add_generation_prompt=True)
    except BadSample as error:
        raise ConfigError(
            f"{error}\nUse another with model.template=FILE, or the built-in model.template=plain"
        ) from error


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = _Environment()
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    compiled = environment.from_string(source)
    compiled.globals = dict(compiled.globals)  # a ChainMap, which each rendering would walk: 8 of 25 µs
    return compiled


def _render(conversation: Conversation, template: Template, codec: Codec) -> Rendering | None:
    """The rendering; None where the data brings its own tokens.

    Raises:
        BadSample: there is none.
    """
    if conversation.input_ids is not None:
        return None
    if conversation.text is not None:
        return render_text(conversation.text, codec)
    if conversation.render != "chat":
        return render_joined(conversation, codec)
    return render_conversation(conversation, template.render, template.name, codec)


def _tokens(rendering: Rendering, codec: Codec) -> Encoding:
    if rendering.spelled:
        return codec.encode_cut(rendering.text, rendering.specials)
    return codec.encode_plain(rendering.text)
