"""The table of noise levels, against diffusers' own schedulers and closed forms."""

import diffusers
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skdiec.backbones.levels import flow_levels, linear_ratio, noise_levels
from skdiec.backbones.schedules import scheduler_of, training_scheduler

VP = {
    "linear": diffusers.DDPMScheduler(),
    "latent": diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine, v": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    "zero SNR": diffusers.DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    "sample": diffusers.DDPMScheduler(prediction_type="sample", num_train_timesteps=60),
}
EVERY = {
    **VP,
    "VE": diffusers.ScoreSdeVeScheduler(),
    "EDM": diffusers.EDMEulerScheduler(),
    "EDM, v": diffusers.EDMEulerScheduler(prediction_type="v_prediction", sigma_schedule="exponential", sigma_data=1.0),
    "consistency": diffusers.CMStochasticIterativeScheduler(),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", VP)
def test_noised_images_and_targets_are_bitwise_those_of_the_scheduler(name):
    scheduler, levels = VP[name], noise_levels(VP[name])
    x0, e = noise(5, 3, 4, 4), noise(5, 3, 4, 4, seed=1)
    timesteps = torch.linspace(0, len(levels) - 1, 5).long()
    level = levels.at(timesteps)
    assert torch.equal(level.noised(x0, e), scheduler.add_noise(x0, e, timesteps))
    assert torch.equal(level.time, timesteps)
    kind = scheduler.config.prediction_type
    expected = {"epsilon": e, "sample": x0, "v_prediction": scheduler.get_velocity(x0, e, timesteps)}[kind]
    torch.testing.assert_close(level.target(x0, e), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_estimates_undo_noise_and_target(name):
    levels = noise_levels(EVERY[name])
    x0, e = noise(6, 1, 4, 4).double(), noise(6, 1, 4, 4, seed=1).double()
    level = levels.at(torch.linspace(1, 0.95 * len(levels), 6).long())
    found = level.estimates(level.noised(x0, e), level.target(x0, e))
    # Less is left of what there is hardly any of.
    share = (level.signal / level.noise).double()
    assert_allclose(found[0] * share.clamp(max=1), x0 * share.clamp(max=1), atol=1e-5)
    assert_allclose(found[1] / share.clamp(min=1), e / share.clamp(min=1), atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_levels_are_from_the_least_to_the_most_noise(name):
    levels = noise_levels(EVERY[name])
    ratio = levels.noise.double() / levels.signal.double()
    assert (ratio.diff() > 0).all()
    assert all(getattr(levels, column).shape == (len(levels),) for column in vars(levels))
    assert all(getattr(levels, column).isfinite().all() for column in vars(levels))


def test_variance_exploding_estimates_the_score():
    levels = noise_levels(diffusers.ScoreSdeVeScheduler(num_train_timesteps=11, sigma_min=0.01, sigma_max=100.0))
    sigma = 0.01 * 10.0 ** (4 * np.arange(11) / 10)
    x0, e = noise(11, 1, 2, 2), noise(11, 1, 2, 2, seed=1)
    level = levels.at(torch.arange(11))
    by_row = sigma[:, None, None, None]
    assert_allclose(level.noised(x0, e), x0.numpy() + by_row * e.numpy(), rtol=1e-5)
    assert_allclose(level.target(x0, e), -e.numpy() / by_row, rtol=1e-5)
    assert_allclose(level.time, sigma, rtol=1e-5)
    assert_allclose(level.weight * level.target(x0, e), -e, rtol=1e-5)


@pytest.mark.parametrize("name", ["EDM", "EDM, v"])
def test_edm_is_preconditioned_as_its_scheduler_does(name):
    scheduler, levels = EVERY[name], noise_levels(EVERY[name])
    rows = torch.tensor([0, 100, 500, 900])
    sigma = scheduler.sigmas[:-1].flip(0)[rows]
    level = levels.at(rows)
    assert_allclose(level.noise.ravel(), sigma, rtol=1e-6)
    x0, e, output = (noise(4, 3, 2, 2, seed=seed) for seed in range(3))
    x_t = level.noised(x0, e)
    for row in range(4):
        one = x_t[row : row + 1], sigma[row]
        torch.testing.assert_close((level.scale * x_t)[row : row + 1], scheduler.precondition_inputs(*one))
        assert level.time[row].item() == pytest.approx(float(scheduler.precondition_noise(sigma[row])), rel=1e-5)
        expected = scheduler.precondition_outputs(one[0], output[row : row + 1], sigma[row])
        found = level.estimates(x_t, output)[0][row : row + 1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_consistency_has_the_boundary_condition_of_its_scheduler():
    scheduler = diffusers.CMStochasticIterativeScheduler()
    levels = noise_levels(scheduler)
    assert len(levels) == 39
    sigmas = scheduler.sigmas.sort().values[1:]
    rows = torch.tensor([0, 10, 20, 38])
    level, (skip, out) = levels.at(rows), scheduler.get_scalings_for_boundary_condition(sigmas[rows])
    x0, e, output = (noise(4, 3, 2, 2, seed=seed) for seed in range(3))
    x_t = level.noised(x0, e)
    assert_allclose(level.noise.ravel(), sigmas[rows], rtol=1e-6)
    assert_allclose(level.time, scheduler.sigma_to_t(sigmas[rows].numpy()), rtol=1e-5)
    expected = out[:, None, None, None] * output + skip[:, None, None, None] * x_t
    assert_allclose(level.estimates(x_t, output)[0], expected, rtol=1e-3, atol=1e-3)
    scheduler.set_timesteps(39)
    t = scheduler.timesteps[0]
    assert_allclose((level.scale * x_t)[3], scheduler.scale_model_input(x_t[3], t), rtol=1e-5)


def test_flow_goes_straight():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    levels = noise_levels(scheduler)
    x0, e = noise(3, 1, 2, 2), noise(3, 1, 2, 2, seed=1)
    timesteps = torch.tensor([1, 400, 999])
    level = levels.at(timesteps)
    for row, t in enumerate(timesteps):
        expected = scheduler.scale_noise(x0[row : row + 1], t[None].float(), e[row : row + 1])
        torch.testing.assert_close(level.noised(x0, e)[row : row + 1], expected)
    assert torch.equal(level.target(x0, e), e - x0)
    assert level.time.tolist() == [1.0, 400.0, 999.0]
    assert_allclose(flow_levels(1000, time_scale=0.001).at(timesteps).time, [0.001, 0.4, 0.999], rtol=1e-6)
    turned = flow_levels(1000, is_reversed=True).at(timesteps)
    assert torch.equal(turned.target(x0, e), x0 - e)
    assert_allclose(turned.time, [0.999, 0.6, 0.001], atol=1e-7)
    assert torch.equal(turned.noised(x0, e), level.noised(x0, e))


def test_equal_levels_are_found_in_every_schedule():
    """The table of equal levels, by bisection in each schedule's own closed form."""
    wanted = [10, 50, 100, 200, 400]
    ratios = list(map(linear_ratio, wanted))
    found = {name: noise_levels(EVERY[name]).nearest(ratios, len(noise_levels(EVERY[name])) - 1) for name in EVERY}
    assert found["linear"] == tuple(wanted)
    assert found["latent"] == (2, 32, 99, 261, 568)
    assert found["cosine, v"] == (22, 103, 203, 393, 707)
    assert found["flow"] == tuple(round(1000 * ratio / (1 + ratio)) for ratio in ratios)
    sigmas = np.geomspace(0.01, 1348, 2000)
    assert found["VE"] == tuple(int(np.abs(np.log(sigmas) - np.log(ratio)).argmin()) for ratio in ratios)
    levels = noise_levels(diffusers.ScoreSdeVeScheduler())
    half = levels.nearest(ratios, 1999, contrast=0.5)
    assert half == tuple(int(np.abs(np.log(sigmas) - np.log(ratio / 2)).argmin()) for ratio in ratios)
    assert levels.nearest([1e9], 700) == (700,)


# From configurations


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 50.0}, "ScoreSdeVeScheduler"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 1.0}, "EDMEulerScheduler"),
        ({"_class_name": "CMStochasticIterativeScheduler", "rho": 5.0}, "CMStochasticIterativeScheduler"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}, "FlowMatchEulerDiscreteScheduler"),
        (
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
            "FlowMatchEulerDiscreteScheduler",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configurations_of_other_noise_are_read(config, kind):
    scheduler = training_scheduler(config, "it")
    assert type(scheduler).__name__ == kind
    shared = config.keys() & {"sigma_max", "sigma_data", "rho"}
    assert {key: scheduler.config[key] for key in shared} == {key: config[key] for key in shared}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0}, "sigma_min must be a number from 1e-12"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 0.001}, "sigma_max must be a number from 0.02"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": "x"}, "sigma_data must be a number"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "prediction_type must be 'epsilon' or"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "other"}, "sigma_schedule must be 'karras' or"),
        ({"_class_name": "CMStochasticIterativeScheduler", "rho": 0}, "rho must be a number from 0.001"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1}, "num_train_timesteps must be"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "must be 'flow_prediction'; got None"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": "yes"}, "use_flow_sigmas must be false or"),
    ],
)
def test_values_that_make_no_noise_are_refused(config, message):
    with pytest.raises(ValueError, match=f"^it.*{message}"):
        training_scheduler(config, "it")


def test_loaded_schedulers_give_what_their_configurations_do():
    for scheduler in (diffusers.EDMDPMSolverMultistepScheduler(sigma_data=1.0), diffusers.ScoreSdeVeScheduler()):
        found, expected = noise_levels(scheduler_of(scheduler, "it")), noise_levels(training_scheduler(
            {"_class_name": type(scheduler).__name__, **scheduler.config}, "it"
        ))  # fmt: skip
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in vars(found))
