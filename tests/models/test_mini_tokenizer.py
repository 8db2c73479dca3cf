"""The shipped tokenizer: round trips, single tokens, ``<bos>``, and the chat template."""

import pytest

from models.tasks.tokens import encode, single_tokens

TEXTS = ("The code for amber otter is 4821.", "x7 = 482. y3 = x7.", "Zwölf  Boxer\n\tjagen <Viktor>!", "  12 345\n")


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text), clean_up_tokenization_spaces=False) == text


def test_digits_and_key_words_are_one_token(tokenizer):
    pieces = single_tokens()
    cut = {piece: tokens for piece in pieces if len(tokens := encode(tokenizer, piece)) != 1}
    assert pieces and not cut, f"not one token: {cut}"


def test_a_number_is_cut_into_digits(tokenizer):
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, " 4821")) == ["Ġ4", "8", "2", "1"]


def test_bos_comes_with_completions_and_once_with_chats(tokenizer):
    bos = tokenizer.bos_token_id
    assert tokenizer("The code")["input_ids"][0] == bos
    chat = [{"role": "user", "content": "Trace x7."}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert encode(tokenizer, rendered).count(bos) == 1
    assert rendered == "<bos><|user|>Trace x7."


def test_a_conversation_is_rendered_turn_by_turn(tokenizer):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1."},
        {"role": "user", "content": [{"type": "text", "text": "Two"}, {"type": "text", "text": "?"}]},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == "<bos><|user|>Be brief.\nOne?<|assistant|>1.<eos><|user|>Two?<|assistant|>"


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="role must be system, developer, user or assistant, got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
