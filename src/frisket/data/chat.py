"""Chat templates: rendering as transformers does it, and conversations to tokens of known provenance."""

import json
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import numpy as np
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from frisket.data.problem import BadSample, Problem
from frisket.data.provenance import (
    NO_TURN,
    Rendering,
    render_conversation,
    render_joined,
    render_text,
)
from frisket.data.tokens import Codec, Encoding, codec_of
from frisket.errors import ConfigError, DataError
from frisket.types import Conversation, Message, Provenance, Sequence

BUILT_IN = ("plain", "chatml")
ANSWER_ROLES = (Provenance.ASSISTANT, Provenance.REASONING, Provenance.TOOL_CALL, Provenance.END_OF_TURN)
_WRITTEN_ROLES = (*ANSWER_ROLES, Provenance.SYSTEM, Provenance.USER, Provenance.TOOL_RESULT)
_BATCH = 512  # renderings tokenised together; bounds memory


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` of newer templates: rendered as it is, because provenance is found without it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


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
    codec = codec_of(tokenizer)
    waiting = iter(conversations)
    while batch := list(islice(waiting, _BATCH)):
        yield from _encode_batch(batch, template, codec)


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

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _encode_batch(batch: Seq[Conversation], template: Template, codec: Codec) -> list[Encoded | Problem]:
    rendered = [_render(conversation, template, codec) for conversation in batch]
    plain = [i for i, r in enumerate(rendered) if isinstance(r, Rendering) and not r.spelled]
    texts = [r.text for r in rendered if isinstance(r, Rendering) and not r.spelled]
    encodings = dict(zip(plain, codec.encode_plain(texts), strict=True))
    return [
        _finish(conversation, result, encodings.get(i), codec)
        for i, (conversation, result) in enumerate(zip(batch, rendered, strict=True))
    ]


def _render(conversation: Conversation, template: Template, codec: Codec) -> Rendering | Problem | None:
    """The rendering; None where the data brings its own tokens."""
    if conversation.input_ids is not None:
        return None
    try:
        if conversation.text is not None:
            return render_text(conversation.text, codec)
        if conversation.render != "chat":
            return render_joined(conversation, codec)
        return render_conversation(conversation, template.render, template.name, codec)
    except BadSample as error:
        return Problem(conversation.place, str(error))


def _finish(
    conversation: Conversation, result: Rendering | Problem | None, encoding: Encoding | None, codec: Codec
) -> Encoded | Problem:
    if isinstance(result, Problem):
        return result
    if result is None:
        return _ready_made(conversation)
    try:
        return _encoded(conversation, result, encoding or codec.encode_cut(result.text, result.specials), codec)
    except BadSample as error:
        return Problem(conversation.place, str(error))


def _tokens(rendering: Rendering, codec: Codec) -> Encoding:
    if rendering.spelled:
        return codec.encode_cut(rendering.text, rendering.specials)
    return codec.encode_plain([rendering.text])[0]


def _encoded(conversation: Conversation, rendering: Rendering, encoding: Encoding, codec: Codec) -> Encoded:
    character_roles, character_turns = _painted(rendering, codec)
    last = np.maximum(encoding.ends - 1, encoding.starts)
    ids, roles, turns = encoding.ids, character_roles[last], character_turns[last]
    straddling = int((character_roles[encoding.starts] != roles).sum())
    if rendering.end:
        if codec.eos_id is None:
            raise BadSample("this tokenizer has no end token to put after the text; use render=chat")
        final = turns[-1] if len(turns) else 0
        ids, roles, turns = (
            np.append(ids, codec.eos_id),
            np.append(roles, Provenance.END_OF_TURN),
            np.append(turns, final),
        )
    if rendering.begin and codec.bos_id is not None:
        ids, roles, turns = (
            np.insert(ids, 0, codec.bos_id),
            np.insert(roles, 0, Provenance.BOS),
            np.insert(turns, 0, NO_TURN),
        )
    sequence = Sequence(
        conversation.sample_id,
        conversation.source,
        ids.astype(np.int32),
        roles.astype(np.uint8),
        turns.astype(np.int32),
        np.zeros(len(ids), np.uint32),
        _data_weights(conversation, roles, turns),
    )
    return Encoded(sequence, straddling, rendering.removed_characters)


def _painted(rendering: Rendering, codec: Codec) -> tuple[np.ndarray, np.ndarray]:
    """Provenance and message of each character."""
    roles = np.full(len(rendering.text), Provenance.TEMPLATE, np.uint8)
    turns = np.full(len(rendering.text), NO_TURN, np.int32)
    for span in rendering.spans:
        roles[span.start : span.end] = span.role
    ends = [start for start, _ in rendering.boundaries[1:]] + [len(rendering.text)]
    for (start, turn), end in zip(rendering.boundaries, ends, strict=False):
        turns[start:end] = turn
    first = rendering.specials[0] if rendering.specials else None
    if first and first.start == 0 and first.token_id == codec.bos_id:
        roles[: first.end] = Provenance.BOS
    return roles, turns


def _data_weights(conversation: Conversation, roles: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """A weight on a message replaces the policy's on everything that the message wrote and on its end token."""
    weights = np.full(len(roles), np.nan)
    if conversation.taught_turn is None and all(message.weight is None for message in conversation.messages):
        return weights
    written = np.isin(roles, _WRITTEN_ROLES)
    for turn, message in enumerate(conversation.messages):
        if message.weight is not None:
            weights[written & (turns == turn)] = message.weight
    if conversation.taught_turn is not None:
        weights[np.isin(roles, ANSWER_ROLES) & (turns != conversation.taught_turn)] = 0.0
    return weights


def _ready_made(conversation: Conversation) -> Encoded:
    """Tokens that the data brings: what it teaches counts as the assistant's, the rest as the user's."""
    ids = np.array(conversation.input_ids, np.int32)
    given = conversation.token_weights
    weights = np.full(len(ids), np.nan) if given is None else np.array(given, np.float64)
    roles = np.where(weights == 0, Provenance.USER, Provenance.ASSISTANT).astype(np.uint8)
    turns = np.zeros(len(ids), np.int32)
    marks = np.zeros(len(ids), np.uint32)
    return Encoded(Sequence(conversation.sample_id, conversation.source, ids, roles, turns, marks, weights), 0, 0)
