import pytest
import torch

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.train.generate import generate, pick

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


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_or_flattens(temperature):
    expected = (CHANCES.log() / temperature).softmax(0)
    torch.testing.assert_close(draws(2000, temperature), expected, atol=0.045, rtol=0)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
def test_the_lowest_temperatures_take_the_likeliest(temperature):
    assert draws(20, temperature).tolist() == [0, 1, 0, 0]
