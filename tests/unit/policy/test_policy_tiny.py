import torch

from grace_exp.policy.tiny import CHATML, tiny_model, tiny_tokenizer


def test_the_same_seed_makes_the_same_model_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    one, same, other = (tiny_model(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_the_tokenizer_is_the_same_every_time() -> None:
    assert tiny_tokenizer().get_vocab() == tiny_tokenizer().get_vocab()


def test_model_and_tokenizer_fit_each_other() -> None:
    model, tokenizer = tiny_model(0), tiny_tokenizer()
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().num_embeddings
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_tokenizer_loses_no_character() -> None:
    tokenizer = tiny_tokenizer()
    text = "Ünïcode 東京 🙂\n\ttabs  and  spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template == CHATML
