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
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        within = self.kernel(first, first).mean() + self.kernel(second, second).mean()
        return within - 2 * self.kernel(first, second).mean()

    @staticmethod
    def kernel(first: Tensor, second: Tensor) -> Tensor:
        squares = [phi.pow(2).sum(-1, keepdim=True) for phi in (first, second)]
        distances = torch.addmm(squares[1].t(), first, second.t(), alpha=-2).add_(squares[0]).clamp_min_(1e-30)
        kernel = torch.zeros_like(distances)
        for gamma in (0.001, 0.01, 0.1, 1, 10, 100, 1000):
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
}
"""Peers of methods, by name."""
IMAGE_PEERS: Mapping[str, type[ERM]] = {
    "augerino": Augmented,
    "augerino_color": AugerinoColor,
    "fixed_augmentation": FixedAugmentation,
}
"""Peers of methods that change images."""
