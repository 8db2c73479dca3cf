"""The tokenizer: byte-level BPE with 2048 entries, single digits, and one token per key word.

A tiny model looks a value up quickly only if the value stands right behind its key. The vocabulary therefore never
puts a filler token between them: a digit carries its leading space, and ``=`` and ``is`` are one token with theirs.
"""

import string
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from models.tasks.prose import sentences
from models.tasks.words import KEY_WORDS

VOCABULARY = 2048
PAD, BOS, EOS, SUMMARY = "<pad>", "<bos>", "<eos>", "<sum>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
SPECIALS = (PAD, BOS, EOS, SUMMARY, USER, ASSISTANT, "<spare0>", "<spare1>", "<spare2>", "<spare3>")
PHRASES = (
    "The",
    " code",
    " for",
    " is",
    " =",
    "Question",
    "Trace",
    "Query",
    "Repeat",
    "Line",
    " line",
    "Step",
    "What",
    " value",
    " What",
    " the",
    " of",
    "Again",
    "Run",
    "End",
    " Repeat",
    " Run",
    " program",
)
_BOOST = 4000  # more than any pair of the prose counts, so that the whole word is merged

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content or [] -%}{{ part.text if part is mapping else part }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set state = namespace(system="") -%}
{%- for message in messages -%}
{%- if message.role in ["system", "developer"] -%}
{%- set state.system = state.system + text(message.content) + "\\n" -%}
{%- elif message.role == "user" -%}
{{- "<|user|>" + state.system + text(message.content) -}}
{%- set state.system = "" -%}
{%- elif message.role == "assistant" -%}
{{- "<|assistant|>" + text(message.content) + eos_token -}}
{%- else -%}
{{- raise_exception("role must be system, developer, user or assistant, got " + message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>" -}}{%- endif -%}
"""


def build() -> Tokenizer:
    """Train the tokenizer on the training prose and check what the tasks rely on."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" ?[0-9]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    _check(tokenizer)
    return tokenizer


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of ``text`` as it stands, with either a ``tokenizers`` or a ``transformers`` tokenizer."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding if isinstance(encoding, list) else encoding.ids


def single_tokens() -> list[str]:
    """Every string that must be one token."""
    digits = [space + digit for space in ("", " ") for digit in string.digits]
    letters = [" " + letter for letter in string.ascii_lowercase]
    return digits + letters + [" " + word for word in KEY_WORDS] + list(PHRASES)


def _corpus() -> Iterator[str]:
    yield from sentences(held_out=False)
    for piece in single_tokens():
        yield from [piece] * _BOOST


def _check(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == VOCABULARY
    broken = [piece for piece in single_tokens() if len(encode(tokenizer, piece)) != 1]
    assert not broken, f"not one token: {broken}"
