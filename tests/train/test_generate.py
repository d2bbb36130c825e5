import pytest
import torch

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.attention import KeyValueCache, side_by_side
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.train.generate import generate, generate_all, pick

SHAPE = {"width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "vocab_size": 19, "ffn_width": 40}
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module", params=["ngpt", "gpt"])
def model(request) -> NGPT:
    config = ModelConfig(architecture=request.param, init_std=0.3, **SHAPE)
    made = NGPT(config)
    initialise(made, parameter_table(config), seed=4)
    if made.s_z is not None:
        next(made.s_z.parameters()).data *= 10  # far from uniform, as a trained model is
    return made.eval()


@torch.no_grad()
def generate_anew(model: NGPT, length: int, temperature: float, top_p: float, seed: int):
    """The same without a cache: the whole text through the model for every token."""
    ids, generator = list(PROMPT), torch.Generator().manual_seed(seed)
    for _ in range(length):
        ids.append(pick(model(torch.tensor([ids]))[0, -1], temperature, top_p, generator))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 0.8)])
def test_the_cache_changes_nothing(model, temperature, top_p):
    for seed in range(3):
        found = generate(model, PROMPT, length=30, temperature=temperature, top_p=top_p, seed=seed)
        assert list(found) == generate_anew(model, 30, temperature, top_p, seed)


def test_temperature_0_takes_the_likeliest_whatever_the_seed(model):
    texts = {tuple(generate(model, PROMPT, length=20, temperature=0, seed=s)) for s in range(4)}
    assert len(texts) == 1


def test_the_seed_chooses_the_text(model):
    texts = [tuple(generate(model, PROMPT, length=20, seed=seed)) for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


SEVERAL = [PROMPT, [7], [2, 7, 1, 8, 2, 8, 1, 8], [9, 9, 9, 9, 9], [11, 12]]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 0.8)])
def test_a_row_of_a_batch_is_what_the_prompt_gives_alone(model, temperature, top_p):
    how = {"length": 25, "temperature": temperature, "top_p": top_p}
    together = generate_all(model, SEVERAL, seed=6, **how)
    alone = [list(generate(model, p, seed=6 + n, **how)) for n, p in enumerate(SEVERAL)]
    assert together == alone
    assert len({tuple(made) for made in together}) == len(SEVERAL)


def test_rows_of_a_batch_end_one_by_one(model):
    whole = generate_all(model, SEVERAL, length=20, seed=3)
    stop = whole[0][4]
    ended = [made[: made.index(stop)] if stop in made else made for made in whole]
    assert len({len(made) for made in ended}) > 1
    assert generate_all(model, SEVERAL, length=20, seed=3, stop=stop) == ended
    assert generate_all(model, [], length=20) == []
    assert generate_all(model, SEVERAL, length=0) == [[] for _ in SEVERAL]


def test_logits_of_a_row_are_those_alone(model):
    """Before any rounding to a token: whatever stands in the room before a row is not seen."""
    caches = [[KeyValueCache() for _ in model.blocks] for _ in range(2)]
    with torch.no_grad():
        for prompt, cache in zip(([[1, 2, 3, 4, 5]], [[6, 7]]), caches, strict=True):
            model(torch.tensor(prompt), caches=cache)
        order = torch.tensor([1, 0])
        joined = [side_by_side(pair, order) for pair in zip(*caches, strict=True)]
        for cache in joined:
            cache.keys[0, :3], cache.values[0, :3] = 1e3, 1e3
        where = {"positions": torch.tensor([[2], [5]]), "first_BS": torch.tensor([[3], [0]])}
        together = model(torch.tensor([[8], [9]]), caches=joined, **where)
        whole = [model(torch.tensor([ids]))[0, -1:] for ids in ([6, 7, 8], [1, 2, 3, 4, 5, 9])]
    torch.testing.assert_close(together, torch.stack(whole), atol=1e-5, rtol=1e-5)


def test_reading_a_prompt_makes_logits_of_its_last_token_only(model, monkeypatch):
    rows: list[int] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda h: (rows.append(h.shape[1]), logits(h))[1])
    list(generate(model, PROMPT, length=3))
    assert rows == [1, 1, 1]


def test_length_and_stop(model):
    whole = list(generate(model, PROMPT, length=20, seed=3))
    assert len(whole) == 20
    assert list(generate(model, PROMPT, length=0)) == []
    place = next(n for n in range(5, 20) if whole[n] not in whole[:n])
    assert list(generate(model, PROMPT, length=20, seed=3, stop=whole[place])) == whole[:place]


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "the prompt has no tokens"),
        ([1, 19], {}, "token id 19, but the model knows 19 ids"),
        ([1], {"temperature": -0.1}, "temperature = -0.1"),
        ([1], {"temperature": float("nan")}, "temperature = nan"),
        ([1], {"top_p": 0.0}, "top_p = 0.0"),
        ([1], {"top_p": 1.1}, "top_p = 1.1"),
    ],
)
def test_refused(model, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        list(generate(model, prompt, length=1, **settings))


CHANCES = torch.tensor([0.15, 0.5, 0.05, 0.3])


def draws(count: int, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    """Share of each id among many draws."""
    generator = torch.Generator().manual_seed(0)
    found = [pick(CHANCES.log() + 7, temperature, top_p, generator) for _ in range(count)]
    return torch.bincount(torch.tensor(found), minlength=4) / count


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, [1]), (0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [0, 1, 3]), (1.0, range(4))],
)
def test_top_p_keeps_the_likeliest_that_reach_it(top_p, kept):
    mask = torch.zeros(4)
    mask[list(kept)] = 1
    expected = CHANCES * mask / (CHANCES * mask).sum()
    # four standard deviations of a share among 2000 draws
    torch.testing.assert_close(draws(2000, top_p=top_p), expected, atol=0.045, rtol=0)


def test_more_tokens_than_are_sorted_at_first_can_be_sampled():
    chances = torch.zeros(4000)  # all alike: the 512 likeliest hold 0.128
    generator = torch.Generator().manual_seed(0)
    assert len({pick(chances, 1.0, 0.9, generator) for _ in range(2000)}) > 1200


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_or_flattens(temperature):
    expected = (CHANCES.log() / temperature).softmax(0)
    torch.testing.assert_close(draws(2000, temperature), expected, atol=0.045, rtol=0)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
def test_the_lowest_temperatures_take_the_likeliest(temperature):
    assert draws(20, temperature).tolist() == [0, 1, 0, 0]
