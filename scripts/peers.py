"""Published algorithms in plain PyTorch, which `benchmark_peers.py` compares the suite's steps with.

Each states what the authors' code or DomainBed's does with a list of minibatches, one of each environment: the same
forward passes, the same calls of `autograd.grad`, torch.optim.Adam. Weights of penalties are the suite's defaults.
"""

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.components.affine import basis
from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import Problem

Minibatch = tuple[Tensor, Tensor, Tensor]
"""Inputs (B, ...), labels (B,) and nuisances (B, 1) of one environment."""
Draw = Callable[[], list[Minibatch]]
"""Function that draws the next minibatch of every environment."""
LEARNING_RATE = 1e-3


class ERM:
    """One loss over all examples; other algorithms change its objective."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        self.features, self.head = network.features, network.head
        self.problem = problem
        self.parameters = [*self.features.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE)

    def predict(self, x: Tensor) -> Tensor:
        """Compute logits (N, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def update(self, draw: Draw) -> None:
        """Make one step."""
        self.minimise(self.objective(draw()))

    def minimise(self, objective: Tensor) -> None:
        """Differentiate an objective and let the optimiser step."""
        self.optimizer.zero_grad()
        objective.backward()
        self.optimizer.step()

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        """Compute what a step minimises."""
        x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
        return F.cross_entropy(self.predict(x), y)

    def all_logits(self, minibatches: list[Minibatch]) -> list[Tensor]:
        """Compute the logits of every environment in one pass."""
        logits = self.predict(torch.cat([x for x, _, _ in minibatches]))
        return list(logits.split([len(x) for x, _, _ in minibatches]))


def dummy_gradient(logits: Tensor, y: Tensor) -> Tensor:
    """Compute the gradient of the risk by a dummy scale, with a graph through it."""
    scale = torch.ones(1, requires_grad=True)
    gradient: Tensor = torch.autograd.grad(F.cross_entropy(logits * scale, y), [scale], create_graph=True)[0]
    return gradient


class IRM(ERM):
    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        risk = penalty = torch.zeros(())
        for logits, (_, y, _) in zip(self.all_logits(minibatches), minibatches, strict=True):
            risk = risk + F.cross_entropy(logits, y)
            penalty = penalty + dummy_gradient(logits, y).square().sum()
        return (risk + 100 * penalty) / len(minibatches)


class VREx(ERM):
    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        losses = torch.zeros(len(minibatches))
        for i, (logits, (_, y, _)) in enumerate(zip(self.all_logits(minibatches), minibatches, strict=True)):
            losses[i] = F.cross_entropy(logits, y)
        mean = losses.mean()
        return mean + 10 * ((losses - mean) ** 2).mean()


class MMREx(VREx):
    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        losses = torch.stack(
            [
                F.cross_entropy(logits, y)
                for logits, (_, y, _) in zip(self.all_logits(minibatches), minibatches, strict=True)
            ]
        )
        return (losses.mean() + 1e4 * (losses.max() - losses.mean())) / 1e4


class GroupDRO(ERM):
    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.weights = torch.ones(problem.environments)

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        losses = torch.zeros(len(minibatches))
        for i, (x, y, _) in enumerate(minibatches):
            losses[i] = F.cross_entropy(self.predict(x), y)
            self.weights[i] *= (1e-2 * losses[i].data).exp()
        self.weights /= self.weights.sum()
        return torch.dot(losses, self.weights)


class Pairwise(ERM):
    """Risks, and a distance between the representations of every two environments."""

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        raise NotImplementedError

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        representations = [self.features(x) for x, _, _ in minibatches]
        risk = penalty = torch.zeros(())
        environments = len(minibatches)
        for i, (_, y, _) in enumerate(minibatches):
            risk = risk + F.cross_entropy(self.head(representations[i]), y)
            for j in range(i + 1, environments):
                penalty = penalty + self.distance(representations[i], representations[j])
        return risk / environments + penalty / (environments * (environments - 1) / 2)


class CORAL(Pairwise):
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        means = [phi.mean(0, keepdim=True) for phi in (first, second)]
        centred = [phi - mean for phi, mean in zip((first, second), means, strict=True)]
        covariances = [phi.t() @ phi / (len(phi) - 1) for phi in centred]
        return (means[0] - means[1]).pow(2).mean() + (covariances[0] - covariances[1]).pow(2).mean()


class MMD(Pairwise):
    gammas: tuple[float, ...] = (0.001, 0.01, 0.1, 1, 10, 100, 1000)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        within = self.kernel(first, first).mean() + self.kernel(second, second).mean()
        return within - 2 * self.kernel(first, second).mean()

    def kernel(self, first: Tensor, second: Tensor) -> Tensor:
        squares = [phi.pow(2).sum(-1, keepdim=True) for phi in (first, second)]
        distances = torch.addmm(squares[1].t(), first, second.t(), alpha=-2).add_(squares[0]).clamp_min_(1e-30)
        kernel = torch.zeros_like(distances)
        for gamma in self.gammas:
            kernel = kernel + (-gamma * distances).exp()
        return kernel


class IGA(ERM):
    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        risk, gradients = torch.zeros(()), []
        for x, y, _ in minibatches:
            loss = F.cross_entropy(self.predict(x), y)
            risk = risk + loss
            gradients.append(torch.autograd.grad(loss, self.parameters, create_graph=True))
        mean_risk = risk / len(minibatches)
        mean = torch.autograd.grad(mean_risk, self.parameters, retain_graph=True)
        penalty = torch.zeros(())
        for gradient in gradients:
            for g, m in zip(gradient, mean, strict=True):
                penalty = penalty + (g - m).pow(2).sum()
        return mean_risk + 1000 * penalty


class Fish(ERM):
    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.network = nn.Sequential(self.features, self.head)
        self.state: dict[str, Any] | None = None

    def update(self, draw: Draw) -> None:
        inner = copy.deepcopy(self.network)
        optimizer = torch.optim.Adam(inner.parameters(), lr=LEARNING_RATE)
        if self.state is not None:
            optimizer.load_state_dict(self.state)
        for x, y, _ in draw():
            loss = F.cross_entropy(inner(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.state = optimizer.state_dict()
        before, after = self.network.state_dict(), inner.state_dict()
        self.network.load_state_dict({name: value + 0.5 * (after[name] - value) for name, value in before.items()})


class SD(ERM):
    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        logits = self.predict(torch.cat([x for x, _, _ in minibatches]))
        return F.cross_entropy(logits, torch.cat([y for _, y, _ in minibatches])) + 0.1 * (logits**2).mean()


class GradientRule(ERM):
    """One graph over all environments, a backward pass for each, and a rule for every parameter."""

    def rule(self, gradients: Tensor) -> Tensor:
        """Combine the environments' gradients (E, *param)."""
        raise NotImplementedError

    def update(self, draw: Draw) -> None:
        self.optimizer.zero_grad()
        for parameter, gradients in zip(self.parameters, self.gradients(draw()), strict=True):
            parameter.grad = self.rule(torch.stack(gradients))
        self.optimizer.step()

    def gradients(self, minibatches: list[Minibatch]) -> list[list[Tensor]]:
        """Compute for every parameter the gradients of all environments."""
        gradients: list[list[Tensor]] = [[] for _ in self.parameters]
        for logits, (_, y, _) in zip(self.all_logits(minibatches), minibatches, strict=True):
            loss = F.cross_entropy(logits, y)
            for kept, g in zip(gradients, torch.autograd.grad(loss, self.parameters, retain_graph=True), strict=True):
                kept.append(g)
        return gradients


class ANDMask(GradientRule):
    def rule(self, gradients: Tensor) -> Tensor:
        mask = (torch.mean(torch.sign(gradients), dim=0).abs() >= 1).to(gradients.dtype)
        return mask * torch.mean(gradients, dim=0) * (1.0 / (1e-10 + mask.sum() / mask.numel()))


class SANDMask(GradientRule):
    def rule(self, gradients: Tensor) -> Tensor:
        agreement = torch.mean(torch.sign(gradients), dim=0).abs()
        mask = torch.tanh(10 * (agreement - 0.5) / gradients.var(dim=0)).clamp(min=0)
        mask = torch.nan_to_num(mask, nan=1e-17)
        return mask * torch.mean(gradients, dim=0) * (1.0 / (1e-10 + mask.sum() / mask.numel()))


class PCGrad(GradientRule):
    def update(self, draw: Draw) -> None:
        each = self.gradients(draw())
        flat = [torch.cat([g.flatten() for g in gradients]) for gradients in zip(*each, strict=True)]
        surgeons = [g.clone() for g in flat]
        for g in surgeons:
            others = list(flat)
            random.shuffle(others)
            for other in others:
                inner = torch.dot(g, other)
                if inner < 0:
                    g -= inner * other / other.norm() ** 2
        merged = torch.stack(surgeons).mean(0)
        self.optimizer.zero_grad()
        for parameter, part in zip(self.parameters, merged.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        self.optimizer.step()


class IBERM(ERM):
    invariance = 0.0

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        features = self.features(torch.cat([x for x, _, _ in minibatches]))
        logits = self.head(features)
        risk = penalty = bottleneck = torch.zeros(())
        start = 0
        for x, y, _ in minibatches:
            rows = slice(start, start + len(x))
            risk = risk + F.cross_entropy(logits[rows], y)
            if self.invariance:
                penalty = penalty + dummy_gradient(logits[rows], y).square().sum()
            bottleneck = bottleneck + features[rows].var(dim=0).mean()
            start += len(x)
        return (risk + self.invariance * penalty + 100 * bottleneck) / len(minibatches)


class IBIRM(IBERM):
    invariance = 100.0


class Fishr(ERM):
    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.running: list[list[Tensor | None]] = [[None, None] for _ in range(problem.environments)]

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        features = self.features(torch.cat([x for x, _, _ in minibatches]))
        logits, y = self.head(features), torch.cat([y for _, y, _ in minibatches])
        total = F.cross_entropy(logits, y, reduction="sum")
        delta = torch.autograd.grad(total, [logits], create_graph=True)[0]
        per_example = [delta[:, :, None] * features[:, None, :], delta]  # of the head's weights and biases
        sizes = [len(x) for x, _, _ in minibatches]
        variances = []
        for e, parts in enumerate(zip(*(part.split(sizes) for part in per_example), strict=True)):
            each = []
            for k, part in enumerate(parts):
                variance = (part - part.mean(0, keepdim=True)).pow(2).mean(0)
                old = self.running[e][k]
                new = 0.05 * variance + (0 if old is None else 0.95 * old)
                self.running[e][k] = new.detach()
                each.append((new / 0.05).flatten())
            variances.append(torch.cat(each))
        mean = torch.stack(variances).mean(0)
        penalty = torch.stack([(variance - mean).pow(2).mean() for variance in variances]).mean()
        risk = torch.stack([F.cross_entropy(z, t) for z, t in zip(logits.split(sizes), y.split(sizes), strict=True)])
        return risk.mean() + 1000 * penalty


class Mixup(ERM):
    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        objective = torch.zeros(())
        ring = torch.randperm(len(minibatches)).tolist()
        for i, j in zip(ring, ring[1:] + ring[:1], strict=True):
            (first, y_first, _), (second, y_second, _) = minibatches[i], minibatches[j]
            share = np.random.beta(0.2, 0.2)
            logits = self.predict(share * first + (1 - share) * second)
            objective = objective + share * F.cross_entropy(logits, y_first)
            objective = objective + (1 - share) * F.cross_entropy(logits, y_second)
        return objective / len(minibatches)


class RSC(ERM):
    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
        features = self.features(x)
        logits = self.head(features)
        one_hot = F.one_hot(y, logits.shape[1])
        gradient = torch.autograd.grad((logits * one_hot).sum(), features)[0]
        bounds = np.percentile(gradient.numpy(), 100 * 2 / 3, axis=1)
        mask = gradient.lt(torch.tensor(bounds, dtype=x.dtype)[:, None].expand_as(gradient)).to(x.dtype)
        muted = F.softmax(self.head(features * mask), dim=1)
        changes = (F.softmax(logits, dim=1) * one_hot).sum(1) - (muted * one_hot).sum(1)
        bound = np.percentile(changes.detach().numpy(), 100 * 2 / 3)
        keeps = changes.lt(torch.tensor(bound)).to(x.dtype).view(-1, 1)
        return F.cross_entropy(self.head(features * torch.logical_or(mask, keeps).to(x.dtype)), y)


class IRMGames(ERM):
    """Every environment owns a network and an optimiser; one moves in a step, by the mean of all predictions."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        inputs = torch.Size(problem.input_shape).numel()
        self.players = [self.player(inputs, problem.task.outputs) for _ in range(problem.environments)]
        self.optimizers = [torch.optim.Adam(player.parameters(), lr=LEARNING_RATE) for player in self.players]
        self.turn = 0

    @staticmethod
    def player(inputs: int, outputs: int) -> nn.Module:
        hidden = [nn.Linear(inputs, 390), nn.ELU(), nn.Dropout(0.75), nn.Linear(390, 390), nn.ELU(), nn.Dropout(0.75)]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(390, outputs))

    def update(self, draw: Draw) -> None:
        x, y, _ = draw()[self.turn]
        logits = torch.stack([player(x) for player in self.players]).mean(0)
        loss, optimizer = F.cross_entropy(logits, y), self.optimizers[self.turn]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.turn = (self.turn + 1) % len(self.players)


class AdaReg(ERM):
    """Gradients of risk and of IRMv1's penalty apart, weighed element by element."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.seconds = [torch.zeros_like(p) for p in self.parameters]
        self.weights = [torch.ones_like(p) for p in self.parameters]

    def update(self, draw: Draw) -> None:
        risk = penalty = torch.zeros(())
        minibatches = draw()
        for logits, (_, y, _) in zip(self.all_logits(minibatches), minibatches, strict=True):
            risk = risk + F.cross_entropy(logits, y) / len(minibatches)
            penalty = penalty + dummy_gradient(logits, y).square().sum() / len(minibatches)
        risks = torch.autograd.grad(risk, self.parameters, retain_graph=True)
        penalties = torch.autograd.grad(penalty, self.parameters)
        self.optimizer.zero_grad()
        with torch.no_grad():
            for parameter, g in zip(self.parameters, self.gradients(risks, penalties), strict=True):
                parameter.grad = g
        self.optimizer.step()

    def gradients(self, risks: tuple[Tensor, ...], penalties: tuple[Tensor, ...]) -> list[Tensor]:
        """Combine the gradients of all parameters, and change the weights."""
        gradients = []
        for k, (risk, penalty) in enumerate(zip(risks, penalties, strict=True)):
            g = self.weighed(risk, penalty, k)
            self.seconds[k] = 0.99 * self.seconds[k] + 0.01 * g**2
            self.change(k)
            gradients.append(g)
        return gradients

    def weighed(self, risk: Tensor, penalty: Tensor, k: int) -> Tensor:
        return risk + self.weights[k] * penalty

    def change(self, k: int) -> None:
        self.weights[k] = torch.where(self.seconds[k] < 1e-5, 10 * self.weights[k], self.weights[k])


class InverseAdaReg(AdaReg):
    def weighed(self, risk: Tensor, penalty: Tensor, k: int) -> Tensor:
        return self.weights[k] * risk + penalty

    def change(self, k: int) -> None:
        self.weights[k] = torch.where(self.seconds[k] < 1e-5, self.weights[k] / 10, self.weights[k])


class SoftAdaReg(AdaReg):
    def weighed(self, risk: Tensor, penalty: Tensor, k: int) -> Tensor:
        return risk + penalty / (self.seconds[k].sqrt() + 1e-15)

    def change(self, k: int) -> None:
        pass


class SimpleAdaReg(AdaReg):
    weight = 1.0

    def gradients(self, risks: tuple[Tensor, ...], penalties: tuple[Tensor, ...]) -> list[Tensor]:
        gradients = [risk + self.weight * penalty for risk, penalty in zip(risks, penalties, strict=True)]
        if sum((g**2).sum() for g in gradients) < 1e-5:
            self.weight *= 10
        return gradients


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Make a critic of two hidden layers of 64 units."""
    hidden: list[nn.Module] = []
    for size in (inputs, 64):
        hidden += [nn.Linear(size, 64), nn.LayerNorm(64), nn.ELU()]
    return nn.Sequential(*hidden, nn.Linear(64, outputs))


class WithCritic(ERM):
    """Some updates of a critic on new minibatches, then one of the network."""

    steps, rate, weight = 1, 1e-3, 1.0

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.critic = self.network(problem.task.outputs)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=self.rate)

    def network(self, outputs: int) -> nn.Module:
        raise NotImplementedError

    def critic_loss(self, score: Tensor, nuisance: Tensor) -> Tensor:
        raise NotImplementedError

    def penalty(self, score: Tensor, nuisance: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self, draw: Draw) -> None:
        for _ in range(self.steps):
            x, _, nuisance = map(torch.cat, zip(*draw(), strict=True))
            with torch.no_grad():
                score = standardised(self.predict(x))
            loss = self.critic_loss(score, nuisance)
            self.critic_optimizer.zero_grad()
            loss.backward()
            self.critic_optimizer.step()
        x, y, nuisance = map(torch.cat, zip(*draw(), strict=True))
        logits = self.predict(x)
        self.minimise(F.cross_entropy(logits, y) + self.weight * self.penalty(standardised(logits), nuisance))


def standardised(score: Tensor) -> Tensor:
    """Take mean and deviation out of scores (N, classes)."""
    centred = score - score.mean(0)
    return centred / (centred.pow(2).mean(0) + 1e-8).sqrt()


class MutualInformation(WithCritic):
    steps, rate, weight = 8, 8e-4, 10.0

    def network(self, outputs: int) -> nn.Module:
        return perceptron(outputs + 1, 1)

    def critic_loss(self, score: Tensor, nuisance: Tensor) -> Tensor:
        other = nuisance[torch.randperm(len(nuisance))]
        joint, product = (self.critic(torch.cat([score, z], 1)) for z in (nuisance, other))
        return torch.logsumexp(product.squeeze(1), 0) - np.log(len(product)) - joint.mean()

    def penalty(self, score: Tensor, nuisance: Tensor) -> Tensor:
        mean: Tensor = self.critic(torch.cat([score, nuisance], 1)).mean()
        return mean


class Adversary(WithCritic):
    steps, rate, weight = 16, 1e-4, 4.0

    def network(self, outputs: int) -> nn.Module:
        return perceptron(outputs, 3 * 5)

    def critic_loss(self, score: Tensor, nuisance: Tensor) -> Tensor:
        logits, means, log_widths = self.critic(score).chunk(3, 1)
        log_widths = log_widths.clamp(min=-5)
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=logits, validate_args=False),
            torch.distributions.Normal(means, log_widths.exp(), validate_args=False),
            validate_args=False,
        )
        loss: Tensor = -mixture.log_prob(nuisance.squeeze(1)).mean()
        return loss

    def penalty(self, score: Tensor, nuisance: Tensor) -> Tensor:
        return -self.critic_loss(score, nuisance)


class Augmented(ERM):
    """One random affine transformation of every image, by `affine_grid` and `grid_sample`."""

    names: tuple[str, ...] = ("translation_x", "translation_y", "rotation", "scale", "stretch", "shear")

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.basis = basis(problem, self.names)
        self.raw = self.first_widths()
        if self.raw.requires_grad:
            self.optimizer.add_param_group({"params": [self.raw]})

    def first_widths(self) -> Tensor:
        return torch.zeros(len(self.names), requires_grad=True)

    def widths(self) -> Tensor:
        return F.softplus(self.raw)

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
        widths = self.widths()
        noise = torch.rand(len(x), len(widths)) * widths - widths / 2
        matrices = torch.linalg.matrix_exp(torch.einsum("nk,kij->nij", noise, self.basis))
        grid = F.affine_grid(matrices[:, :2], list(x.shape), align_corners=True)
        logits = F.log_softmax(self.predict(F.grid_sample(x, grid, align_corners=True)), 1)
        return F.cross_entropy(logits, y) + self.regulariser(widths)

    def regulariser(self, widths: Tensor) -> Tensor:
        return -0.01 * widths.norm() if widths.max() < 10 else torch.zeros(())


class FixedAugmentation(Augmented):
    names = ("rotation", "scale")

    def first_widths(self) -> Tensor:
        return torch.tensor([0.5, 0.2])

    def widths(self) -> Tensor:
        return self.raw

    def regulariser(self, widths: Tensor) -> Tensor:
        return torch.zeros(())


class AugerinoColor(ERM):
    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.raw = torch.tensor([-2.0, 2.0, -2.0, 2.0], requires_grad=True)
        self.optimizer.add_param_group({"params": [self.raw]})

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
        limits = 2 * torch.sigmoid(self.raw) - 1
        brightness = (limits[0] + (limits[1] - limits[0]) * torch.rand(len(x)))[:, None, None, None]
        contrast = 255 * (limits[2] + (limits[3] - limits[2]) * torch.rand(len(x)))[:, None, None, None]
        pixels = (self.problem.pixels.restored(x) + brightness).clamp(0, 1)
        factor = 259 * (contrast + 255) / (255 * (259 - contrast))
        pixels = (factor * (255 * pixels - 128) + 128).clamp(0, 255) / 255
        logits = F.log_softmax(self.predict(self.problem.pixels.standardised(pixels)), 1)
        lengths = torch.stack([limits[1] - limits[0], limits[3] - limits[2]])
        return F.cross_entropy(logits, y) - 0.1 * lengths.norm()


class EQRM(ERM):
    """The quantile of a kernel estimate by halving; its gradient goes through the halvings."""

    quantile = torch.tensor(0.75, dtype=torch.float64)

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        risks = torch.cat([F.cross_entropy(self.predict(x), y).reshape(1) for x, y, _ in minibatches])
        ordered, _ = torch.sort(risks)
        width = 1.06 * torch.std(ordered) * len(ordered) ** -0.2
        ends = [torch.distributions.Normal(ordered[i], width).icdf(self.quantile) for i in (0, -1)]
        middle = 0.5 * (ends[0] + ends[1])
        for _ in range(32):
            ends[int(self.share_below(middle, ordered, width) > self.quantile)] = middle
            following = 0.5 * (ends[0] + ends[1])
            if following == middle:
                break
            middle = following
        return middle

    @staticmethod
    def share_below(value: Tensor, ordered: Tensor, width: Tensor) -> Tensor:
        """Compute the estimated distribution function of the risks."""
        kernels = torch.distributions.Normal(ordered, torch.ones(len(ordered)) * width)
        share: Tensor = kernels.cdf(value.repeat(len(ordered), 1).T).mean()
        return share


class RDM(MMD):
    gammas = (0.0001, 0.001, 0.01, 0.1, 1, 10, 100, 1000)

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        risks, rows = torch.zeros(len(minibatches)), []
        for i, (logits, (_, y, _)) in enumerate(zip(self.all_logits(minibatches), minibatches, strict=True)):
            risks[i] = F.cross_entropy(logits, y)
            rows.append(F.cross_entropy(logits, y, reduction="none"))
        losses = torch.stack(rows)
        worst, every = losses[torch.argmax(risks)], losses.flatten()
        matching = self.distance(worst[:, None], every[:, None])
        return risks.mean() + 5 * matching + 0.004 * (every.var() + worst.var())


class CausIRL(CORAL):
    """Two random parts in the place of environments."""

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        representations = [self.features(x) for x, _, _ in minibatches]
        all_logits = [self.head(phi) for phi in representations]
        risk, parts = torch.zeros(()), [representations[0][:0]] * 2
        for logits, phi, (_, y, _) in zip(all_logits, representations, minibatches, strict=True):
            risk = risk + F.cross_entropy(logits, y)
            cut = np.random.randint(0, len(phi))
            parts = [torch.cat(pair) for pair in zip(parts, (phi[:cut], phi[cut:]), strict=True)]
        first, second = parts
        is_defined = len(first) > 1 and len(second) > 1
        penalty = torch.nan_to_num(self.distance(first, second)) if is_defined else torch.zeros(())
        return risk / len(minibatches) + penalty


class CAD(ERM):
    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
        environment = torch.cat([torch.full_like(y, e) for e, (_, y, _) in enumerate(minibatches)])
        phi = self.features(x)
        others = ~torch.eye(len(y), dtype=torch.bool)
        of_label = (y[:, None] == y[None]) & others
        same = environment[:, None] == environment[None]
        similarity = phi @ phi.T / 0.1 * others
        similarity = similarity - similarity.max(1, keepdim=True).values.detach()
        logs = similarity - torch.logsumexp(similarity + others.to(phi.dtype).log(), 1, keepdim=True)
        valid = of_label.sum(1) > 0
        loss = -0.1 / 0.07 * torch.logsumexp(logs[valid] + (~same[valid]).to(phi.dtype).log(), 1)
        finite = torch.isfinite(loss)
        count = finite.sum()
        penalty = torch.where(finite, loss, torch.zeros(())).sum() / count if count != 0 else torch.zeros(())
        return F.cross_entropy(self.head(phi), y) + 0.1 * penalty


class DANN(ERM):
    """A step of the discriminator on minibatches of its own, then one of the network."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        width = network.head.in_features
        layers = [nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
        self.discriminator = nn.Sequential(*layers, nn.Linear(256, problem.environments))
        self.critic_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.9))

    def update(self, draw: Draw) -> None:
        for turn in ("discriminator", "network"):
            minibatches = draw()
            x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
            environment = torch.cat([torch.full_like(y, e) for e, (_, y, _) in enumerate(minibatches)])
            phi = self.features(x)
            logits = self.discriminator(phi)
            loss = F.cross_entropy(logits, environment)
            total = F.cross_entropy(logits, environment, reduction="sum")
            gradient = torch.autograd.grad(total, [phi], create_graph=True)[0]
            loss = loss + 0.0 * gradient.pow(2).sum(1).mean()
            if turn == "discriminator":
                self.critic_optimizer.zero_grad()
                loss.backward()
                self.critic_optimizer.step()
            else:
                self.critic_optimizer.zero_grad()
                self.minimise(F.cross_entropy(self.head(phi), y) - loss)


class SagNet(ERM):
    """Three passes and three optimisers: content, style, and the body against the style."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.style = nn.Linear(network.head.in_features, problem.task.outputs)
        parts = (self.features, self.head, self.style)
        self.optimizers = [torch.optim.Adam(part.parameters(), lr=LEARNING_RATE) for part in parts]

    def update(self, draw: Draw) -> None:
        minibatches = draw()
        x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
        of_features, of_head, of_style = self.optimizers
        for turn, optimizers in enumerate(([of_features, of_head], [of_style], [of_features])):
            phi = self.randomised(self.features(x), is_style=turn == 0)
            logits = self.head(phi) if turn == 0 else self.style(phi)
            loss = F.cross_entropy(logits, y) if turn < 2 else -0.1 * F.log_softmax(logits, 1).mean(1).mean()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()

    @staticmethod
    def randomised(phi: Tensor, is_style: bool) -> Tensor:
        share = torch.rand(len(phi), 1)
        mean, variance = phi.mean(1, keepdim=True), phi.var(1, keepdim=True)
        content = (phi - mean) / (variance + 1e-5).sqrt()
        other = torch.randperm(len(phi))
        if is_style:
            mean = share * mean + (1 - share) * mean[other]
            variance = share * variance + (1 - share) * variance[other]
        else:
            content = content[other].detach()
        return content * (variance + 1e-5).sqrt() + mean


class SelfReg(ERM):
    """Examples are sorted by class, and each class is shuffled twice, one example after another."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        width = network.head.in_features
        layers: list[nn.Module] = []
        for inputs, outputs in ((width, 2 * width), (2 * width, 2 * width), (2 * width, width)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        self.projection = nn.Sequential(*layers[:-1])
        self.optimizer.add_param_group({"params": list(self.projection.parameters())})

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
        share = np.random.beta(0.5, 0.5)
        y, order = torch.sort(y)
        ordered = torch.zeros_like(x)
        for i, row in enumerate(order):
            ordered[i] = x[row]
        phi = self.features(ordered)
        projection, logits = self.projection(phi), self.head(phi)
        seconds = [torch.zeros_like(logits), torch.zeros_like(projection)]
        thirds = [torch.zeros_like(logits), torch.zeros_like(projection)]
        start = 0
        for end in [i for i in range(1, len(y)) if y[i] != y[i - 1]] + [len(y)]:
            orders = [torch.randperm(end - start) + start for _ in range(2)]
            for i in range(end - start):
                for parts, shuffled in zip((seconds, thirds), orders, strict=True):
                    parts[0][i + start] = logits[shuffled[i]]
                    parts[1][i + start] = projection[shuffled[i]]
            start = end
        mixed = [share * second + (1 - share) * third for second, third in zip(seconds, thirds, strict=True)]
        individual = F.mse_loss(logits, seconds[0]) + 0.3 * F.mse_loss(phi, seconds[1])
        heterogeneous = F.mse_loss(logits, mixed[0]) + 0.3 * F.mse_loss(phi, mixed[1])
        loss = F.cross_entropy(logits, y)
        return loss + min(loss.item(), 1.0) * (share * individual + (1 - share) * heterogeneous)


class Transfer(ERM):
    """A step by the risk, one by the gap, and ten of the other head."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.other = copy.deepcopy(network.head)
        self.other_optimizer = torch.optim.SGD(self.other.parameters(), lr=1e-3)

    def gap(self, minibatches: list[Minibatch]) -> Tensor:
        largest, smallest = torch.tensor(-float("inf")), torch.tensor(float("inf"))
        for x, y, _ in minibatches:
            loss = F.cross_entropy(self.other(self.features(x)), y)
            largest = loss if loss > largest else largest
            smallest = loss if loss < smallest else smallest
        return largest - smallest

    def update(self, draw: Draw) -> None:
        minibatches = draw()
        self.minimise(self.objective(minibatches))
        self.minimise(self.gap(minibatches))
        self.other.load_state_dict(self.head.state_dict())
        for _ in range(10):
            self.other_optimizer.zero_grad()
            (-self.gap(minibatches)).backward()
            self.other_optimizer.step()
            pairs = list(zip(self.other.parameters(), self.head.parameters(), strict=True))
            distance = torch.sqrt(sum(((a - b).norm() ** 2 for a, b in pairs), torch.zeros(())))
            if distance > 2:
                for a, b in pairs:
                    a.data = b + 2 / distance * (a - b)


class TRM(ERM):
    """A head for each environment, thirty steps of all; products with the second derivatives by autograd."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        count, width = problem.environments, network.head.in_features
        self.heads = [nn.Linear(width, problem.task.outputs) for _ in range(count)]
        for parameter in nn.ModuleList(self.heads).parameters():
            nn.init.zeros_(parameter)  # as the suite's
        self.head_optimizers = [torch.optim.SGD(head.parameters(), lr=0.1) for head in self.heads]
        self.optimizers = [torch.optim.Adam(part.parameters(), lr=LEARNING_RATE) for part in (self.features, self.head)]
        self.shares = torch.ones(count, count) - torch.eye(count)

    def minimise(self, objective: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        objective.backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        self.shares = self.shares / self.shares.sum(1, keepdim=True)
        phi = self.features(torch.cat([x for x, _, _ in minibatches]))
        labels = [y for _, y, _ in minibatches]
        risk = F.cross_entropy(self.head(phi), torch.cat(labels))
        each = phi.split([len(y) for y in labels])
        for _ in range(30):
            self.fit(each, labels)
        total = torch.zeros(())
        for q, head in enumerate(self.heads):
            own = F.cross_entropy(head(each[q]), labels[q])
            slope = nn.utils.parameters_to_vector(torch.autograd.grad(own, head.weight, create_graph=True))
            crossed = {p: F.cross_entropy(head(each[p]), labels[p]) for p in range(len(each)) if p != q}
            crossed = {p: self.shares[q, p].clone() * value for p, value in crossed.items()}
            loss = sum(crossed.values(), torch.zeros(()))
            vector = nn.utils.parameters_to_vector(torch.autograd.grad(loss, head.weight, create_graph=True)).detach()
            total = total + loss - 1e-4 * (self.inverse(vector, head, each[q].detach(), labels[q]) @ slope)
            for p, value in crossed.items():
                self.shares[q, p] *= (1e-2 * value.data).exp()
        return risk + total / len(each)

    def fit(self, each: tuple[Tensor, ...], labels: list[Tensor]) -> None:
        """Make a step of all heads, each on the representations (B, features) of its environment."""
        loss = torch.zeros(())
        for head, phi, y in zip(self.heads, each, labels, strict=True):
            loss = loss + F.cross_entropy(head(phi.detach()), y)
        for optimizer in self.head_optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.head_optimizers:
            optimizer.step()

    @staticmethod
    def inverse(vector: Tensor, head: nn.Linear, phi: Tensor, y: Tensor) -> Tensor:
        """Sum the series of the inverse of the second derivatives, times a vector."""
        total = vector
        for _ in range(10):
            loss = F.cross_entropy(head(phi), y)
            slope = nn.utils.parameters_to_vector(torch.autograd.grad(loss, head.weight, create_graph=True))
            curved = torch.autograd.grad(slope @ vector, head.weight, create_graph=True)
            vector = (vector - nn.utils.parameters_to_vector(curved)).detach()
            total = total + vector
            if total.abs().max() > 10:
                break
        return total


class URM(ERM):
    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        layers = [nn.Linear(network.head.in_features, 100), nn.LeakyReLU(), nn.Linear(100, 100), nn.LeakyReLU()]
        self.discriminator = nn.Sequential(*layers, nn.Linear(100, 1))
        self.critic_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=LEARNING_RATE)

    def update(self, draw: Draw) -> None:
        minibatches = draw()
        x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
        phi = self.features(x)  # of the suite's model, whose features end in tanh
        ones = torch.ones(len(phi))
        fooled = F.binary_cross_entropy_with_logits(self.discriminator(phi).squeeze(1), ones)
        self.minimise(F.cross_entropy(self.head(phi), y, reduction="none").mean() + 0.1 * fooled)
        phi = phi.detach()
        noise = 2 * torch.rand(phi.shape) - 1
        taken = F.binary_cross_entropy_with_logits(self.discriminator(noise).squeeze(1), ones)
        refused = F.binary_cross_entropy_with_logits(self.discriminator(phi).squeeze(1), 0 * ones)
        self.critic_optimizer.zero_grad()
        (taken + 0.1 * refused).backward()
        self.critic_optimizer.step()


class MLDG(ERM):
    """A copy of the network for each pair of environments, with an Adam of its own."""

    def update(self, draw: Draw) -> None:
        minibatches = draw()
        count = len(minibatches)
        order = torch.randperm(count).tolist()
        tested = min(2, count - 1)
        self.optimizer.zero_grad()
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        network = nn.Sequential(self.features, self.head)
        for position, i in enumerate(order[:-tested]):
            (x, y, _), (x_test, y_test, _) = minibatches[i], minibatches[order[count - tested + position % tested]]
            inner = copy.deepcopy(network)
            optimizer = torch.optim.Adam(inner.parameters(), lr=LEARNING_RATE)
            optimizer.zero_grad()
            F.cross_entropy(inner(x), y).backward()
            optimizer.step()
            second = torch.autograd.grad(F.cross_entropy(inner(x_test), y_test), list(inner.parameters()))
            for parameter, copied, g in zip(self.parameters, inner.parameters(), second, strict=True):
                if parameter.grad is not None and copied.grad is not None:
                    parameter.grad += (copied.grad + g) / count
        self.optimizer.step()


class PGrad(ERM):
    """The walk of a copy, its principal directions, and their sum as the gradient."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.network = nn.Sequential(self.features, self.head)
        self.state: dict[str, Any] | None = None

    def update(self, draw: Draw) -> None:
        minibatches = draw()
        inner = copy.deepcopy(self.network)
        optimizer = torch.optim.Adam(inner.parameters(), lr=1e-3)
        if self.state is not None:
            optimizer.load_state_dict(self.state)
        walk: list[list[Tensor]] = []
        order = list(range(len(minibatches)))
        random.shuffle(order)
        for turn in range(3):
            for e in order:
                x, y, _ = minibatches[e]
                rows = slice(turn * len(x) // 3, (turn + 1) * len(x) // 3)
                loss = F.cross_entropy(inner(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                walk.append([copy.deepcopy(parameter).unsqueeze(0) for parameter in inner.parameters()])
                optimizer.step()
            random.shuffle(order)
        walk.append([copy.deepcopy(parameter).unsqueeze(0) for parameter in inner.parameters()])
        self.state = optimizer.state_dict()
        self.optimizer.zero_grad()
        self.set_gradient(list(inner.parameters()), walk)
        self.optimizer.step()

    def set_gradient(self, after: list[nn.Parameter], walk: list[list[Tensor]]) -> None:
        """Set the gradients to the sum of the four first directions, each as long as the way and along it."""
        way = [p - q for p, q in zip(self.parameters, after, strict=True)]
        directions, values = self.principal(torch.cat([torch.cat([p.view(1, -1) for p in ps], 1) for ps in walk]))
        directions = directions * torch.stack([part.pow(2).sum() for part in way]).sum().sqrt()
        sizes = [parameter.numel() for parameter in self.parameters]
        along = torch.zeros_like(values)
        for part, rows in zip(way, directions.split(sizes), strict=True):
            along = along + (part.flatten()[:, None] * rows).sum(0)
        directions = (2 * (along > 0).to(directions.dtype) - 1) * directions
        gradient = (values[:4] / values[:4].norm() * directions[:, :4]).sum(1)
        for parameter, part in zip(self.parameters, gradient.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    @staticmethod
    def principal(points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the principal directions (parameters, n) of points (n, parameters), and their variances (n,)."""
        centred = points - points.mean(0)
        vectors, values, _ = torch.linalg.svd(centred @ centred.T / (points.shape[1] - 1))
        directions = centred.T @ vectors
        return directions / directions.norm(dim=0), values


class GGAL(ERM):
    """Gradients of all environments for their cosines, and a pass over all for the step."""

    def update(self, draw: Draw) -> None:
        minibatches, rows = draw(), []
        for x, y, _ in minibatches:
            gradient = torch.autograd.grad(F.cross_entropy(self.predict(x), y), self.parameters, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradient]))
        pairs = [(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
        cosine = torch.stack([F.cosine_similarity(rows[i], rows[j], dim=0) for i, j in pairs]).mean()
        loss = self.objective(minibatches)
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad += torch.randn_like(parameter.grad) * 1e-3 * (1 - cosine)
        self.optimizer.step()


class SAM(ERM):
    def update(self, draw: Draw) -> None:
        minibatches = draw()
        gradients = torch.autograd.grad(self.objective(minibatches), self.parameters)
        scale = 0.05 / torch.cat([g.flatten() for g in gradients]).norm()
        moves = [scale * g for g in gradients]
        with torch.no_grad():
            for parameter, move in zip(self.parameters, moves, strict=True):
                parameter.add_(move)
        loss = self.objective(minibatches)
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter, move in zip(self.parameters, moves, strict=True):
                parameter.sub_(move)
        self.optimizer.step()


class MTL(ERM):
    """The head gets the running mean of its environment as well."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        self.means = torch.zeros(problem.environments, network.head.in_features // 2)

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        risk = torch.zeros(())
        for e, (x, y, _) in enumerate(minibatches):
            phi = self.features(x)
            mean = 0.99 * phi.mean(0) + 0.01 * self.means[e]
            self.means[e] = mean.clone().detach()
            both = torch.cat([phi, mean.view(1, -1).repeat(len(phi), 1)], 1)
            risk = risk + F.cross_entropy(self.head(both), y)
        return risk / len(minibatches)


class ARM(ERM):
    """A further channel from a network that sees the whole environment."""

    def __init__(self, network: FeaturesAndHead, problem: Problem) -> None:
        super().__init__(network, problem)
        layers: list[nn.Module] = []
        for inputs, outputs in ((problem.input_shape[0], 64), (64, 64)):
            layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.context = nn.Sequential(*layers, nn.Conv2d(64, 1, 5, padding=2))
        self.optimizer.add_param_group({"params": list(self.context.parameters())})
        self.parameters += self.context.parameters()

    def objective(self, minibatches: list[Minibatch]) -> Tensor:
        x, y = torch.cat([x for x, _, _ in minibatches]), torch.cat([y for _, y, _ in minibatches])
        maps = self.context(x).reshape(len(minibatches), -1, 1, *x.shape[2:])
        context = torch.repeat_interleave(maps.mean(1), maps.shape[1], dim=0)
        return F.cross_entropy(self.predict(torch.cat([x, context], 1)), y)


PEERS: Mapping[str, type[ERM]] = {
    "erm": ERM,
    "irmv1": IRM,
    "vrex": VREx,
    "mm_rex": MMREx,
    "group_dro": GroupDRO,
    "coral": CORAL,
    "mmd": MMD,
    "iga": IGA,
    "fish": Fish,
    "sd": SD,
    "and_mask": ANDMask,
    "sand_mask": SANDMask,
    "pcgrad": PCGrad,
    "ib_erm": IBERM,
    "ib_irm": IBIRM,
    "fishr": Fishr,
    "mixup": Mixup,
    "rsc": RSC,
    "irm_games": IRMGames,
    "irmv1+adareg": AdaReg,
    "irmv1+inverse_adareg": InverseAdaReg,
    "irmv1+soft_adareg": SoftAdaReg,
    "irmv1+simple_adareg": SimpleAdaReg,
    "mutual_information": MutualInformation,
    "adversary": Adversary,
    "eqrm": EQRM,
    "rdm": RDM,
    "causirl": CausIRL,
    "cad": CAD,
    "dann": DANN,
    "sagnet": SagNet,
    "selfreg": SelfReg,
    "transfer": Transfer,
    "trm": TRM,
    "urm": URM,
    "mldg": MLDG,
    "pgrad": PGrad,
    "gga_l": GGAL,
    "sam": SAM,
    "mtl": MTL,
}
"""Peers of methods, by name."""
IMAGE_PEERS: Mapping[str, type[ERM]] = {
    "augerino": Augmented,
    "augerino_color": AugerinoColor,
    "fixed_augmentation": FixedAugmentation,
    "arm": ARM,
}
"""Peers of methods that change images."""
