"""Schedules by sigma: values, the sigma of diffusers' schedulers, what is refused."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import torch

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.presets import PRESETS, preset_of
from rainfusion_trt.sigma_schedule import NoiseLevels, SigmaSchedule


def values(schedule, sigmas):
    return schedule.at(torch.tensor(sigmas)).tolist()


def test_dense_at_both_ends():
    schedule = SigmaSchedule(0.75, dense_above=0.9, dense_below=0.25)
    sigmas = [1.0, 0.91, 0.9, 0.5, 0.25, 0.24, 0.0]
    assert values(schedule, sigmas) == [0.0, 0.0, 0.75, 0.75, 0.75, 0.0, 0.0]
    assert schedule.peak == 0.75 and str(schedule) == "0.75, dense above sigma 0.9 and below 0.25"


def test_lines_between_points():
    schedule = SigmaSchedule(((0.25, 0.5), (0.5, 0.75), (0.75, 0.25)), dense_above=1.0)
    sigmas = [0.0, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0]
    assert values(schedule, sigmas) == [0.5, 0.5, 0.625, 0.75, 0.5, 0.25, 0.25]
    assert schedule.peak == 0.75


def test_one_point_is_a_constant():
    assert values(SigmaSchedule(((0.3, 0.5),), dense_above=1.0), [0.0, 1.0]) == [0.5, 0.5]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_type_of_torch_does_not_matter(kind):
    """Which loaders of checkpoints set, and some programs leave so."""
    schedule = SigmaSchedule(((0.2, 0.64), (0.9, 0.9)), dense_above=0.95)
    levels = NoiseLevels.of(diffusers.CogVideoXDPMScheduler())
    timesteps = torch.tensor([999, 500.5, 0.0])

    def both():
        return [schedule.at(levels.sigma(timesteps)), levels.sigma(timesteps)]

    expected = both()
    torch.set_default_dtype(kind)
    try:
        actual = both()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 must be in \[0, 1\)"),
        ({"sparsity": True}, "sparsity=True"),
        ({"sparsity": "0.5"}, "sparsity='0.5' must be a number"),
        ({"sparsity": ()}, "one or more points"),
        ({"sparsity": ((0.5, 0.1), (0.5, 0.2))}, "above that of the point before"),
        ({"sparsity": ((1.5, 0.1),)}, "sigma=1.5"),
        ({"sparsity": ((0.5, -0.1),)}, "sparsity=-0.1"),
        ({"dense_above": 1.1}, "dense_above=1.1"),
        ({"dense_below": float("nan")}, "dense_below=nan"),
        ({"dense_above": 0.2, "dense_below": 0.3}, "leaves no step sparse"),
    ],
)
def test_what_is_no_schedule_is_refused(arguments, words):
    with pytest.raises(InvalidInputError, match=words):
        SigmaSchedule(**arguments)


FLOW = [
    diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    diffusers.FlowMatchHeunDiscreteScheduler(shift=5.0),
    diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ),
    diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ),
]
DIFFUSION = [
    diffusers.CogVideoXDDIMScheduler(timestep_spacing="trailing", rescale_betas_zero_snr=True),
    diffusers.CogVideoXDPMScheduler(timestep_spacing="trailing"),
    diffusers.DDPMScheduler(),
]


@pytest.mark.parametrize("scheduler", FLOW, ids=lambda s: type(s).__name__)
def test_sigma_of_flow_matching_is_the_schedulers_own(scheduler):
    scheduler.set_timesteps(20)
    own = scheduler.sigmas[: len(scheduler.timesteps)]
    if isinstance(scheduler, diffusers.FlowMatchHeunDiscreteScheduler):
        own = scheduler.sigmas[:-1]
    sigma = NoiseLevels.of(scheduler).sigma(scheduler.timesteps)
    # Some timesteps are whole: thousandths of sigma.
    np.testing.assert_allclose(sigma, own, atol=1e-3)


@pytest.mark.parametrize("scheduler", DIFFUSION, ids=lambda s: type(s).__name__)
def test_sigma_of_diffusion_has_its_ratio_of_noise_to_clip(scheduler):
    """``add_noise`` of a clip of ones and noise of ones says both shares."""
    scheduler.set_timesteps(20)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    sigma = NoiseLevels.of(scheduler).sigma(scheduler.timesteps)
    for t, found in zip(scheduler.timesteps, sigma, strict=True):
        noise = float(scheduler.add_noise(zero, one, t.view(1)))
        clip = float(scheduler.add_noise(one, zero, t.view(1)))
        assert float(found) == pytest.approx(noise / (noise + clip), abs=1e-5)
    assert all(sigma[i] > sigma[i + 1] for i in range(len(sigma) - 1))


def test_sigma_of_unbounded_noise_has_its_ratio():
    """Schedulers that add ``s`` times the noise to the clip: sigma is s / (1 + s)."""
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(20)
    own = torch.as_tensor(scheduler.sigmas[:-1])
    sigma = NoiseLevels.of(scheduler).sigma(torch.as_tensor(scheduler.timesteps))
    # Between whole timesteps the scheduler interpolates s, and this sigma.
    np.testing.assert_allclose(sigma, own / (1 + own), atol=2e-3)


@pytest.mark.parametrize("steps", [4, 10, 50, 200])
def test_the_same_noise_has_the_same_sparsity_whatever_the_steps(steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    planned = SigmaSchedule(0.75, dense_above=0.9, dense_below=0.2).per_step(scheduler, steps)
    # Of sigma = 1 - i / steps, those above 0.9 and those below 0.2.
    first = math.ceil(round(0.1 * steps, 6))
    last = steps - 1 - math.floor(round(0.8 * steps, 6))
    assert planned == (0.0,) * first + (0.75,) * (steps - first - last) + (0.0,) * last


def test_the_last_timesteps_count():
    """A run that begins with a clip skips the first ones."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    assert SigmaSchedule(0.5).per_step(scheduler, 4) == (0.5,) * 4
    with pytest.raises(InvalidInputError, match="10 timesteps for 11 steps"):
        SigmaSchedule(0.5).per_step(scheduler, 11)


def test_sigmas_that_the_transformer_gets_decide():
    """Cosmos gives its transformer the scheduler's sigmas, of which timesteps are roundings."""
    scheduler = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True,
        use_karras_sigmas=True,
        prediction_type="flow_prediction",
        sigma_min=0.01,
        sigma_max=200.0,
    )
    scheduler.set_timesteps(36)
    sigma = scheduler.sigmas[:-1]
    rounded = NoiseLevels.of(scheduler).sigma(scheduler.timesteps)
    step = int((sigma - rounded).argmax())
    schedule = SigmaSchedule(0.5, dense_above=float(sigma[step] + rounded[step]) / 2)
    # As `enable` has it, which sees what the transformer is called with.
    wanted = tuple(schedule.at(sigma).tolist())
    assert schedule.per_step(scheduler, 36, from_sigmas=True) == wanted
    assert schedule.per_step(scheduler, 36) != wanted
    assert schedule.per_step(scheduler, 9, from_sigmas=True) == wanted[-9:]


def test_schedulers_that_do_not_say_are_refused():
    with pytest.raises(UnsupportedError, match="EDMEulerScheduler does not say how noisy"):
        NoiseLevels.of(diffusers.EDMEulerScheduler())
    continuous = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction"
    )
    with pytest.raises(UnsupportedError, match="EulerDiscreteScheduler does not say how noisy"):
        NoiseLevels.of(continuous)


def test_presets():
    assert [preset_of(name).schedule.peak for name in ("quality", "balanced", "fast")] == [
        0.64,
        0.8,
        0.9,
    ]
    assert {preset.method for preset in PRESETS.values()} == {"piecewise"}
    assert {preset.schedule.dense_above for preset in PRESETS.values()} == {0.9}
    assert preset_of(None) is None
    with pytest.raises(InvalidInputError, match="preset='best' is not one of quality, balanced"):
        preset_of("best")
